"""Which frames a clip has, by the host's rule written once more here, and how clips are read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.gradcam import InputError
from utils.gradcam_kit.data.clips import Clip, clip_loader, cut_clips, read_clips
from utils.gradcam_kit.data.frame import DataSettings, Frame


def frames_of(counts: dict[str, int]) -> list[Frame]:
    every = [(video, i) for video, count in counts.items() for i in range(count)]
    return [Frame(f"/data/{video}/{10 * i:03d}.png", "d", "fake", video, 1, n) for n, (video, i) in enumerate(every)]


def as_the_host(count: int, size: int, frame_num: int) -> list[list[int]]:
    """DeepfakeBench's `collect_img_and_label_for_one_dataset` in its tests, step by step: frames of each clip."""
    frame_paths = list(range(count))
    total_frames = len(frame_paths)
    if frame_num < total_frames:
        total_frames = frame_num
        frame_paths = frame_paths[0:frame_num]
    selected = []
    if total_frames >= size:
        num_clips = total_frames // size
        if num_clips > 1:
            clip_step = (total_frames - size) // (num_clips - 1)
            for i in range(num_clips):
                selected.append(frame_paths[i * clip_step : i * clip_step + size])
        else:
            selected.append(frame_paths[0:size])
    return selected


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("frame_num", [32, 47, 300])
def test_clips_are_the_host_s(size: int, frame_num: int) -> None:
    counts = {f"v{count}": count for count in (16, 17, 31, 32, 33, 47, 100, 270, 320)}
    cut = cut_clips(frames_of({"short": size - 1, **counts} if size > 1 else counts), size, None, frame_num)
    expected = [
        [f"/data/{video}/{10 * i:03d}.png" for i in clip]
        for video, count in counts.items()
        for clip in as_the_host(count, size, frame_num)
    ]
    assert [list(clip.frames) for clip in cut.clips] == expected
    assert [clip.row.index for clip in cut.clips] == list(range(len(expected)))
    assert all(clip.row.path == clip.frames[0] and clip.row.video in clip.frames[0] for clip in cut.clips)
    seen = {path for clip in expected for path in clip}
    every = sum(counts.values()) + (size - 1)
    assert (cut.unseen, cut.frames) == (every - len(seen), every)
    longest_enough = [video for video, count in counts.items() if min(count, frame_num) < size]
    assert cut.short == (["short"] if size > 1 else []) + longest_enough


def test_fewer_clips_of_a_video_are_spread_over_it() -> None:
    cut = cut_clips(frames_of({"a": 64, "b": 8}), 8, 2, None)
    assert [clip.frames[0][6:] for clip in cut.clips] == ["a/160.png", "a/480.png", "b/000.png"]


def test_numbers_and_spacing_are_those_of_the_names() -> None:
    clip = Clip(frames_of({"a": 1})[0], ("v_2/frame_0010.png", "v_2/frame_0013.png", "v_2/frame_0016.jpg"))
    assert clip.numbers == [10, 13, 16] and clip.spacing == 3
    assert Clip(clip.row, ("v1/x.png", "v1/y.png")).numbers == [0, 1]


def test_a_dataset_of_short_videos_is_refused() -> None:
    with pytest.raises(InputError, match=r"no video has the 16 frames of a clip, the longest has 8; give a smaller"):
        cut_clips(frames_of({"a": 8, "b": 3}), 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of six frames, each a colour that says which it is."""
    for label, video in (("real", "a"), ("fake", "b")):
        (tmp_path / label / video).mkdir(parents=True)
        for i in range(6):
            value = 10 * i + 100 * (label == "fake")
            cv2.imwrite(str(tmp_path / label / video / f"{i + 7}.png"), np.full((20, 20, 3), value, np.uint8))
    return tmp_path


def test_videos_of_a_folder_are_read_as_clips(folder: Path) -> None:
    settings = DataSettings(json_folder=folder, clip_size=3, folders={"d": folder})
    cut = read_clips("d", settings)
    assert [clip.numbers for clip in cut.clips] == [[7, 8, 9], [10, 11, 12]] * 2  # 10 after 9
    first, second = clip_loader(cut.clips, 8, 3, 0)
    assert first.pixels.shape == (3, 3, 3, 8, 8) and second.pixels.shape == (1, 3, 3, 8, 8)
    values = [clip[:, 0, 4, 4].tolist() for batch in (first, second) for clip in batch.pixels]
    assert values == [[100, 110, 120], [130, 140, 150], [0, 10, 20], [30, 40, 50]]
    assert [frame.label for frame in first.frames] == [1, 1, 0]


def test_one_unreadable_frame_makes_its_clip_unreadable_by_name(folder: Path) -> None:
    broken = folder / "fake" / "b" / "11.png"
    broken.write_bytes(b"no image")
    cut = read_clips("d", DataSettings(json_folder=folder, clip_size=3, folders={"d": folder}))
    (batch,) = clip_loader(cut.clips, 8, 4, 0)
    assert [frame.index for frame in batch.frames] == [0, 2, 3] and batch.pixels.shape[:2] == (3, 3)
    ((row, reason),) = batch.unreadable
    assert row.index == 1 and str(broken) in reason and "not an image" in reason
