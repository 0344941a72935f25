"""What a dataset lacks, per forgery: folders made and left out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.datasets import data_settings
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.gaps import absent_frames, forgery_gaps, read_gaps, write_gaps
from utils.gradcam_kit.data.readers import read_dataset


def frames_of(root: Path, **videos: int) -> list[Frame]:
    """Three frames for each of so many videos of a forgery."""
    paths = [
        (forgery.replace("__", "."), str(root / forgery.replace("__", ".") / "frames" / f"{v:03d}" / f"{f}.png"))
        for forgery, count in videos.items()
        for v in range(count)
        for f in range(3)
    ]
    return [Frame(path, "toy", forgery, Path(path).parent.name, 1, i) for i, (forgery, path) in enumerate(paths)]


def make(frames: list[Frame]) -> None:
    for frame in frames:
        Path(frame.path).parent.mkdir(parents=True, exist_ok=True)


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, real=2, swap=2)
    make(frames)
    assert absent_frames(frames) == [] and forgery_gaps(frames, []) == []


def test_a_forgery_under_another_name(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, real=2, sd_2__1=413, sd_2__2=1)
    make(frames_of(tmp_path, real=2, sd_2__2=1))
    (tmp_path / "sd2.1_new" / "frames").mkdir(parents=True)
    (tmp_path / "something else").mkdir()
    (tmp_path / "sd_2.1.zip").write_bytes(b"no folder")
    absent = absent_frames(frames)
    assert absent == list(range(6, 6 + 1239))
    (gaps,) = forgery_gaps(frames, absent)
    # sd_2.2 resembles it too, and is another forgery of the same dataset.
    assert gaps.line() == (
        f"all 1,239 frames of sd_2.1 are missing: there is no folder {tmp_path / 'sd_2.1'};"
        " a similar name next to it is sd2.1_new"
    )
    assert (gaps.folders, gaps.absent_folders, gaps.beside) == (413, 413, "sd2.1_new")


def test_some_videos_and_some_files(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, real=1, swap=4)
    make([frame for frame in frames if frame.video != "002"])
    absent = absent_frames(frames)
    assert [frames[i].path.split("/")[-2] for i in absent] == ["002"] * 3
    real, swap = forgery_gaps(frames, absent, [0, 4, 5])
    assert real.line() == "1 of 3 frames of real cannot be read"
    assert swap.line() == (
        f"3 of 12 frames of swap are missing: 1 of 4 folders do not exist, first {tmp_path / 'swap/frames/002'};"
        " 2 of 12 frames of swap cannot be read"
    )
    write_gaps(tmp_path / "gaps.csv", [real, swap])
    assert read_gaps(tmp_path / "gaps.csv") == [real, swap]
    (tmp_path / "gaps.csv").write_text("forgery,frames\nswap,many\n")
    with pytest.raises(InputError, match=r"gaps\.csv: was not written by a run"):
        read_gaps(tmp_path / "gaps.csv")


def test_a_missing_forgery_is_looked_for_beside_the_others(tmp_path: Path) -> None:
    """The JSON has folders of the machine that it was made on, which the others show to be left off."""
    import json

    (tmp_path / "rgb" / "Celeb" / "real" / "v").mkdir(parents=True)
    (tmp_path / "rgb" / "Celeb" / "real" / "v" / "0.png").write_bytes(b"x")
    videos = {
        label: {"test": {"v": {"label": label, "frames": [f"D:\\data\\sets\\Celeb\\{folder}\\v\\0.png"]}}}
        for label, folder in (("Celeb_Fake", "fake"), ("Celeb_Real", "real"))
    }
    (tmp_path / "Celeb.json").write_text(json.dumps({"Celeb": videos}))
    frames = read_dataset("Celeb", data_settings(tmp_path))
    (gaps,) = forgery_gaps(frames, absent_frames(frames))
    assert gaps.first_absent == str(tmp_path / "rgb" / "Celeb" / "fake") and gaps.forgery == "Celeb_Fake"
