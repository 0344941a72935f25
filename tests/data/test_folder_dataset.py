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
from utils.gradcam_kit.data.folder_dataset import dataset_name, describe_images, is_path, named_masks, read_labelled
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
    assert describe_images(frames) == "4 images in 2 videos: real 1 (real), fake 3 (fake)"
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
        ("path,label\ngone.png,0\n", "line 2: no file"),
        ("path,label\na.png,maybe\n", "line 2: label is 'maybe'; allowed: 0, real, 1, fake"),
        ("file,label\na.png,0\n", "has no column path"),
        ("path,label\n", "lists no image"),
        ("", "has no column path, label"),
        ("path,label\n" + "x" * 140_000 + ",0\n", "line 2: no file .{,400}$"),
        ("path,label\na.png,0.05\n", "line 2: label is '0.05'; allowed: 0, real, 1, fake"),  # smoothed
        ("path,label\na.png,2\n", "line 2: label is '2'"),
        ("path,label\na.png,nan\n", "line 2: label is 'nan'"),
        ("path,label\na.png,0,v,1\n", "line 2: has 4 fields, the first line has 2"),
        ("path,label,path\na.png,0,a.png\n", "has the column path twice"),
    ],
)
def test_a_csv_that_says_something_else(tmp_path: Path, content: str, said: str) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_labelled(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"path;label\nreal\\v\\0.png;0,0\nfake/v/0.png;1,0\n", id="decimal commas"),
        pytest.param(
            "\ufeffPATH\tLabel\nreal/v/0.png\tFALSE\nfake/v/0.png\tTRUE\n".encode("utf-16"), id="Unicode text"
        ),
        pytest.param("Path\tLABEL\r\nreal/v/0.png\treal\r\nfake/v/0.png\tfake\r\n".encode("utf-16-le"), id="no mark"),
        pytest.param("path,label\nreal/v/0.png,0\nfake/v/0.png,1\n".encode("utf-32"), id="UTF-32"),
        pytest.param(b"sep=;\r\npath;label;\r\nreal/v/0.png;0;\r\nfake/v/0.png;1;\r\n;;\r\n", id="Excel's own line"),
        pytest.param(b'" Label " | "Path"\r Real | "real/v/0.png"\r FAKE |fake/v/0.png\r', id="bars, blanks, CR"),
        pytest.param(b",path,label,video\n0,real/v/0.png,0.0,v\n1,fake/v/0.png,1.00,v\n\n,,,\n", id="pandas' index"),
        pytest.param(b"label,path\n0_real,real/v/0.png\n1_fake,fake\\v/0.png", id="folders' names"),
    ],
)
def test_a_csv_as_spreadsheets_write_it(tmp_path: Path, content: bytes) -> None:
    for label in ("real", "fake"):
        image(tmp_path / label / "v" / "0.png")
    (tmp_path / "list.csv").write_bytes(content)
    found = [(number, video.frames) for number, video in read_labelled(tmp_path / "list.csv")]
    assert found == [(0, [str(tmp_path / "real/v/0.png")]), (1, [str(tmp_path / "fake/v/0.png")])]


@pytest.mark.parametrize(
    ("encoding", "name"), [("cp1252", "größe"), ("gb18030", "换脸"), ("cp932", "顔カナ"), ("cp1251", "лицо")]
)
def test_a_csv_in_the_encoding_of_a_country(tmp_path: Path, encoding: str, name: str) -> None:
    image(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_bytes(f"path,label,forgery\n{name}.png,1,{name}\n".encode(encoding))
    assert read_labelled(tmp_path / "list.csv") == [(1, (name, str(tmp_path / name), [str(tmp_path / f"{name}.png")]))]


def test_an_image_with_both_labels_is_refused(tmp_path: Path) -> None:
    first, table = Path(image(tmp_path / "a.png")), tmp_path / "list.csv"
    image(tmp_path / "b.png")
    (tmp_path / "link.png").symlink_to(first)
    for again in ("a.png", "./a.png", "x/../a.png", "link.png", str(first)):
        (tmp_path / "x").mkdir(exist_ok=True)
        table.write_text(f"path,label\na.png,real\nb.png,fake\n{again},fake\n")
        with pytest.raises(InputError, match="line 4: .* is fake here and real in line 2: which is it"):
            read_labelled(table)
    table.write_text("path,label\na.png,real\nb.png,fake\na.png,real\na.png,real\n")
    assert describe_images(read_dataset("list", settings(table))).endswith("; 2 are repeats, and count again")


def test_a_dataset_json_with_both_labels_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    videos = {label: {"test": {"v": {"label": label, "frames": [path]}}} for label in ("R", "F")}
    (tmp_path / "toy.json").write_text(json.dumps({"toy": videos}))
    with pytest.raises(InputError, match=r"toy: .*a\.png.* is real and fake"):
        read_dataset("toy", DataSettings(json_folder=tmp_path, label_dict={"R": 0, "F": 1}))


@pytest.mark.parametrize("names", [["{}.png"], ["frame_{}.jpg"], ["clip2_{}_x.png"], ["{}-7.webp"]])
def test_frames_and_videos_lie_in_the_order_of_their_numbers(tmp_path: Path, names: list[str]) -> None:
    for number in (0, 1, 2, 9, 10, 11, 100):
        image(tmp_path / "set" / "fake" / "clip" / names[0].format(number))
        image(tmp_path / "set" / "fake" / f"v{number}" / "0.png")
    frames = [frame.path for frame in read_dataset("set", settings(tmp_path / "set"))]
    numbers = [0, 1, 2, 9, 10, 11, 100]
    assert [Path(path).name for path in frames[:7]] == [names[0].format(number) for number in numbers]
    assert [Path(path).parent.name for path in frames[7:]] == [f"v{number}" for number in numbers]


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
    with pytest.raises(InputError, match=r"line 2: no mask .*gone\.png"):
        named_masks(table)


def test_folders_without_a_label_and_with_two(tmp_path: Path) -> None:
    image(tmp_path / "none" / "x.png")
    with pytest.raises(InputError, match="1 images are in other folders"):
        read_labelled(tmp_path / "none")
    image(tmp_path / "both" / "real" / "fake" / "x.png")
    with pytest.raises(InputError, match="which is it"):
        read_labelled(tmp_path / "both")
    image(tmp_path / "some" / "real" / "x.png")
    image(tmp_path / "some" / "x.png")
    with pytest.raises(InputError, match="are in no folder called"):
        read_labelled(tmp_path / "some")


def test_one_class_and_a_linked_folder_that_leads_round_in_a_circle(tmp_path: Path) -> None:
    image(tmp_path / "fakes" / "fake" / "x.png")
    (tmp_path / "fakes" / "fake" / "again").symlink_to(tmp_path / "fakes")
    assert [video.name for _, video in read_labelled(tmp_path / "fakes")] == ["x"]


def test_what_counts_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "demo" / "real" / "x.png")
    assert is_path("demo", tmp_path) and is_path("./x", tmp_path)
    for name in ("x.csv", "X.CSV", "x.tsv", "x.txt"):
        assert is_path(name, tmp_path)
        image(tmp_path / "a.png")
        (tmp_path / name).write_text("path\tlabel\na.png\t1\n")
        assert len(read_dataset(name[0], settings(tmp_path / name))) == 1
    assert not is_path("Celeb-DF-v2", tmp_path)
    (tmp_path / "demo.json").write_text("{}")
    assert not is_path("demo", tmp_path)  # the dataset JSON of that name comes first
    with pytest.raises(InputError, match="no folder or CSV"):
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
    assert again.returncode == 2 and "exists already" in again.stderr and again.stderr.count("\n") == 1
