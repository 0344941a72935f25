"""Folders and CSVs made by hand, read as datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.paths import ROOT
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.folder_dataset import counted, dataset_name, is_path, named_masks, read_labelled
from utils.gradcam_kit.data.frame import DataSettings
from utils.gradcam_kit.data.readers import read_dataset, reader_of
from utils.gradcam_kit.measure.samples import find_evidence


def image(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), 90, np.uint8))
    return str(path)


def settings(path: Path, frame_num: int | None = None) -> DataSettings:
    return DataSettings(json_folder=path.parent, frame_num=frame_num, folders={dataset_name(path): path})


def test_real_and_fake_with_videos_as_subfolders(tmp_path: Path) -> None:
    root = tmp_path / "faces"
    real = image(root / "real" / "a.png")
    fakes = [image(root / "fake" / "clip" / f"{i}.jpg") for i in (1, 2, 10)]
    image(root / "fake" / "clip" / "masks" / "1.png")  # belongs to a frame
    frames = read_dataset("faces", settings(root))
    assert [(frame.path, frame.forgery, frame.video, frame.label, frame.index) for frame in frames] == [
        (fakes[0], "fake", "clip", 1, 0),
        (fakes[1], "fake", "clip", 1, 1),
        (fakes[2], "fake", "clip", 1, 2),
        (real, "real", "a", 0, 3),
    ]
    assert counted(frames) == "4 images in 2 videos: real 1 (real), fake 3 (fake)"
    assert [frame.path for frame in read_dataset("faces", settings(root, 1))] == [fakes[1], real]


def test_generators_with_labels_below_them(tmp_path: Path) -> None:
    """CNNDetection's and UniversalFakeDetect's layout, and GenImage's."""
    for name in ("progan/cat/0_real", "progan/cat/1_fake", "sdv5/val/nature", "sdv5/val/ai"):
        image(tmp_path / "sets" / name / "x.png")
    found = {(number, video.label, video.name) for number, video in read_labelled(tmp_path / "sets")}
    assert found == {
        (0, "progan/cat/0_real", "x"),
        (1, "progan/cat/1_fake", "x"),
        (0, "sdv5/val/nature", "x"),
        (1, "sdv5/val/ai", "x"),
    }


def test_a_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / "images" / name)
    table = tmp_path / "list.csv"
    table.write_text(
        "path,label,video,forgery\nimages/a.png,0,,\nimages/b.png,fake,v,simswap\nimages/c.png,1,v,simswap\n"
    )
    frames = read_dataset("list", settings(table))
    assert [(Path(frame.path).name, frame.label, frame.forgery, Path(frame.video).name) for frame in frames] == [
        ("a.png", 0, "real", "a"),
        ("b.png", 1, "simswap", "v"),
        ("c.png", 1, "simswap", "v"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,label\ngone.png,0\n", "line 2: there is no file"),
        ("path,label\na.png,maybe\n", "line 2: label is 'maybe'; allowed: 0, real, 1, fake"),
        ("file,label\na.png,0\n", "has no column path"),
        ("path,label\n", "lists no image"),
        ("", "has no column path, label"),
        ("path,label\n" + "x" * 140_000 + ",0\n", "cannot be read as a CSV"),
    ],
)
def test_a_csv_that_says_something_else(tmp_path: Path, content: str, said: str) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_labelled(tmp_path / "list.csv")


def test_a_csv_may_name_masks(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "m.png"):
        image(tmp_path / name)
    table = tmp_path / "list.csv"
    table.write_text("path,label,mask\na.png,0,\nb.png,1,m.png\n")
    assert named_masks(table) == {str(tmp_path / "b.png"): str(tmp_path / "m.png")} and named_masks(tmp_path) == {}
    frames = read_dataset("list", settings(table))
    evidence = find_evidence(None, None, frames, [table])
    assert evidence.masks == {str(tmp_path / "b.png"): str(tmp_path / "m.png")}
    table.write_text("path,label,mask\nb.png,1,gone.png\n")
    with pytest.raises(InputError, match=r"line 2: there is no mask .*gone\.png"):
        named_masks(table)


def test_folders_without_a_label_and_with_two(tmp_path: Path) -> None:
    image(tmp_path / "none" / "x.png")
    with pytest.raises(InputError, match="1 images lie in other folders"):
        read_labelled(tmp_path / "none")
    image(tmp_path / "both" / "real" / "fake" / "x.png")
    with pytest.raises(InputError, match="which is it"):
        read_labelled(tmp_path / "both")
    image(tmp_path / "some" / "real" / "x.png")
    image(tmp_path / "some" / "x.png")
    with pytest.raises(InputError, match="lie in no folder called"):
        read_labelled(tmp_path / "some")


def test_one_class_and_a_linked_folder_that_leads_round_in_a_circle(tmp_path: Path) -> None:
    image(tmp_path / "fakes" / "fake" / "x.png")
    (tmp_path / "fakes" / "fake" / "again").symlink_to(tmp_path / "fakes")
    assert [video.name for _, video in read_labelled(tmp_path / "fakes")] == ["x"]


def test_what_counts_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "demo" / "real" / "x.png")
    assert is_path("demo", tmp_path) and is_path("./x", tmp_path) and is_path("x.csv", tmp_path)
    assert not is_path("Celeb-DF-v2", tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    assert not is_path("demo", tmp_path)  # the dataset JSON of that name comes first
    with pytest.raises(InputError, match="there is no folder and no CSV"):
        dataset_name(tmp_path / "nowhere")


def test_another_image_is_another_dataset(tmp_path: Path) -> None:
    image(tmp_path / "faces" / "real" / "x.png")
    how = settings(tmp_path / "faces")
    before = reader_of("faces", how).sha256("faces", how)
    image(tmp_path / "faces" / "real" / "y.png")
    assert reader_of("faces", how).sha256("faces", how) != before


def test_listing_a_dataset_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, utils.gradcam_kit.data.dataset_json; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_hosts_json_from_a_folder(tmp_path: Path) -> None:
    one, two = image(tmp_path / "faces" / "real" / "x.png"), image(tmp_path / "faces" / "fake" / "v" / "0.png")
    call = [
        sys.executable,
        "-m",
        "utils.dataset_json",
        str(tmp_path / "faces"),
        "-o",
        str(tmp_path / "mine.json"),
    ]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "  fake: 1\n  real: 0" in done.stdout
    assert json.loads((tmp_path / "mine.json").read_text()) == {
        "mine": {
            "fake": {"train": {}, "val": {}, "test": {"v": {"label": "fake", "frames": [two]}}},
            "real": {"train": {}, "val": {}, "test": {"x": {"label": "real", "frames": [one]}}},
        }
    }
    how = DataSettings(json_folder=tmp_path, label_dict={"fake": 1, "real": 0})
    assert [frame.path for frame in read_dataset("mine", how)] == [two, one]
    again = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "is there already" in again.stderr and again.stderr.count("\n") == 1
