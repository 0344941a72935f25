"""Clicks of a CSV file, and masks of a folder of any layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.masks import Clicks, MaskFolder

EXDDV = ["id", "username", "movie_name", "text", "dataset", "manipulation", "click_locations", "difficulty", "split"]


def frame(video: str, number: int = 12) -> Frame:
    return Frame(f"/data/fakes/frames/{video}/{number:03d}.png", "toy", "FF-DF", video, 1, 0)


def exddv(folder: Path, *rows: tuple[str, str, str], manipulation: str = "Deepfakes") -> Path:
    """Rows of (id, movie_name, click_locations) as ExDDV has them."""
    path = folder / "ExDDV.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(EXDDV)
        for number, name, clicks in rows:
            writer.writerow(
                [number, "u1", name, "the mouth, it\nflickers", "FF++", manipulation, clicks, "easy", "test"]
            )
    return path


def test_the_clicks_of_a_frame(tmp_path: Path) -> None:
    """Matched by the video's name without folder and suffix and by the frame's number; two people's are put together."""
    first = json.dumps({"12": {"x": 0.25, "y": 0.5}, "30": {"x": 1, "y": 0}})
    second = json.dumps({"012": [{"x": 0.75, "y": 0.5}, [0.5, 0.125]], "7": [0.5, 0.5]})
    clicks = Clicks(
        exddv(tmp_path, ("1", "fake/000_003.mp4", first), ("2", "000_003.mp4", second), ("3", "001.mp4", ""))
    )
    found = clicks.of(frame("000_003"))
    assert found is not None and found.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.125]]
    for number, expected in ((30, [[1, 0]]), (7, [[0.5, 0.5]])):
        there = clicks.of(frame("000_003", number))
        assert there is not None and there.tolist() == expected
    assert clicks.of(frame("000_003", 13)) is None and clicks.of(frame("001")) is None
    assert clicks.of(frame("not_there")) is None


def test_columns_may_be_called_video_and_clicks(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text('video,clicks\n000,"{""12"": [0.5, 0.25]}"\n')
    found = Clicks(tmp_path / "own.csv").of(frame("000"))
    assert found is not None and found.tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("{12: 3}", "line 3: the clicks are not JSON"),
        ("[1, 2]", "line 3: the clicks are list: expected frame number → place"),
        ('{"a": {"x": 0, "y": 0}}', "line 3: 'a' is not a frame number"),
        ('{"5": {"x": 120, "y": 0.5}}', 'line 3, frame 5: a click is {"x": 120, "y": 0.5}: expected x and y between 0'),
        ('{"5": {"x": 0.5}}', 'line 3, frame 5: a click is {"x": 0.5}'),
        ('{"5": [[0.5, 0.5], [NaN, 0.5]]}', "line 3, frame 5: a click is [NaN, 0.5]"),
        ('{"5": [true, 0.5]}', "line 3, frame 5: a click is [true, 0.5]"),
        ('{"5": "0.5"}', 'line 3, frame 5: a click is "0.5"'),
        ("[" * 100_000, "line 3: the clicks are not JSON"),
    ],
)
def test_bad_rows_in_one_line(tmp_path: Path, cell: str, said: str) -> None:
    path = exddv(tmp_path, ("1", "000.mp4", cell))
    with pytest.raises(InputError) as error:
        Clicks(path)
    message = str(error.value)
    assert said in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no column video or movie_name, clicks or click_locations; its columns are: nothing"),
        (b"video,frame\n", "has no column clicks or click_locations; its columns are: video, frame"),
        (b"video,clicks\n000,\n", "holds no click"),
        (b'video,clicks\n,"{}"\n', "line 2: column 'video' is empty"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        Clicks(tmp_path / "bad.csv")
    assert said in str(error.value) and str(error.value).startswith("--clicks ") and "\n" not in str(error.value)


def test_one_name_for_two_manipulations(tmp_path: Path) -> None:
    path = exddv(tmp_path, ("1", "000.mp4", '{"12": [0.5, 0.5]}'))
    other = path.read_text().splitlines()[-2:]
    path.write_text(path.read_text() + "\n".join(other).replace("Deepfakes", "FaceSwap") + "\n")
    with pytest.raises(InputError, match=r"several datasets or manipulations \(FF\+\+ Deepfakes; FF\+\+ FaceSwap\)"):
        Clicks(path).of(frame("000"))
    assert Clicks(path).of(frame("001")) is None


# --------------------------------------------------------------------------------------------------------------- masks


def masks(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


FRAMES = ["/data/fake/frames/000_003/012.png", "/data/fake/frames/001_870/012.jpg"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fake/frames/000_003/012.png", "fake/frames/001_870/012.png"], [0, 1]),  # the frames' own layout
        (["c23/000_003/012.bmp", "c23/001_870/012.bmp"], [0, 1]),  # other folders around
        (["a/frames/000_003/012.png", "b/x/000_003/012.png"], [0, None]),  # two of that name: folders decide
        (["000_003/012.png", "readme.txt"], [0, None]),  # the frame of another video
        (["000_003/013.png"], [None, None]),
    ],
)
def test_a_mask_is_found_by_its_path(tmp_path: Path, names: list[str], expected: list[Any]) -> None:
    folder = masks(tmp_path / "masks", *names)
    assert MaskFolder(folder).paths(FRAMES) == [None if i is None else str(folder / names[i]) for i in expected]


def test_a_mask_is_found_by_its_name_alone(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks", "part1/clip_a.png", "part2/clip_b.png")
    assert MaskFolder(folder).paths(["/x/clip_b.jpg", "/x/clip_c.jpg"]) == [str(folder / "part2/clip_b.png"), None]


def test_ambiguous_masks_are_refused(tmp_path: Path) -> None:
    two = masks(tmp_path / "two", "a/000_003/012.png", "b/000_003/012.png", "a/clip.png", "b/clip.png")
    with pytest.raises(InputError, match=r"could have the mask '.*/a/000_003/012.png' or '.*/b/000_003/012.png'"):
        MaskFolder(two).paths(FRAMES)
    with pytest.raises(InputError, match=r"could have the mask '.*/a/clip.png' or '.*/b/clip.png'"):
        MaskFolder(two).paths(["/x/clip.jpg"])
    one = masks(tmp_path / "one", "012.png")
    assert MaskFolder(one).paths(FRAMES[:1]) == [str(one / "012.png")]
    with pytest.raises(InputError, match="000_003/012.png' and '.*001_870/012.jpg' would have the same mask"):
        MaskFolder(one).paths(FRAMES)
    for folder, said in ((tmp_path / "none", "no such folder"), (masks(tmp_path / "text", "a.txt"), "holds no image")):
        with pytest.raises(InputError, match=said):
            MaskFolder(folder)
