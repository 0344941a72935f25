"""Clips of videos: their frames, and decoded batches of clips.

A video is cut as DeepfakeBench does for `video_mode: true`, but without shuffling: its frames, in the order of their
numbers, yield as many full clips as fit, with first frames spread evenly. A video shorter than a clip yields none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from ..base.errors import InputError
from ..base.files import write_table
from .frame import DataSettings, Frame, evenly_spaced
from .frame_paths import content_hash, read_bytes
from .frames import Decoded
from .images import UnreadableImage, decode_image
from .readers import read_dataset


class Clip(NamedTuple):
    """Consecutive frames of one video. `row` represents the clip, with its index and its first frame's path."""

    row: Frame
    frames: tuple[str, ...]  # paths

    @property
    def numbers(self) -> list[int]:
        """The number in each frame's name, or the frame's position in the clip if the name has none."""
        return [_number(path, place) for place, path in enumerate(self.frames)]

    @property
    def spacing(self) -> int:
        """The median step between the numbers of neighbouring frames; 0 for a single frame."""
        numbers = self.numbers
        steps = sorted(after - before for before, after in pairwise(numbers))
        return steps[len(steps) // 2] if steps else 0


class CutClips(NamedTuple):
    """The clips of a dataset, and what is in none of them."""

    clips: list[Clip]
    short: list[str]  # videos with fewer frames than a clip
    unseen: int  # frames that are in no clip
    frames: int  # frames of all videos
    size: int  # frames per clip

    def lines(self) -> Iterator[str]:
        """Yield the lines for the terminal: the clips, and what is in none of them."""
        videos = len({clip.row.whole_video for clip in self.clips})
        yield f"{len(self.clips)} clips of {self.size} frames from {videos} videos"
        if self.unseen:
            yield f"{self.unseen} of {self.frames} frames are in no clip and are not evaluated"
        if self.short:
            yield f"{len(self.short)} videos have fewer than {self.size} frames, so no clip; first {self.short[0]!r}"


def read_clips(name: str, settings: DataSettings) -> CutClips:
    """Read a dataset's clips of `settings.clip_size` frames. Raises InputError if no video is long enough."""
    every = replace(settings, frame_num=None, sampling="host_sorted")
    frames = read_dataset(name, every)
    return cut_clips(frames, settings.clip_size or 1, settings.clips_per_video, settings.frame_num)


def cut_clips(frames: Sequence[Frame], size: int, per_video: int | None = None, taken: int | None = None) -> CutClips:
    """Cut a dataset's frames into clips. `frames` are sorted by video, then by number.

    Args:
        size: frames per clip.
        per_video: maximum clips per video, spread evenly; None: all.
        taken: use only so many first frames of each video; None: all.

    Raises:
        InputError: no video is long enough.
    """
    clips: list[Clip] = []
    short, unseen, longest = [], 0, 0
    for _, group in groupby(frames, key=lambda frame: frame.whole_video):
        of_video = list(group)
        longest = max(longest, len(of_video[:taken]))
        starts = clip_starts(len(of_video[:taken]), size)
        if not starts:
            short.append(of_video[0].video)
            unseen += len(of_video)
            continue
        if per_video is not None:
            starts = evenly_spaced(starts, per_video)
        unseen += len(of_video) - len({place for start in starts for place in range(start, start + size)})
        for start in starts:
            some = of_video[start : start + size]
            clips.append(Clip(some[0]._replace(index=len(clips)), tuple(frame.path for frame in some)))
    if not clips:
        raise InputError(
            f"dataset {frames[0].dataset}: no video has the {size} frames of a clip, the longest has {longest}; give a"
            " smaller --clip_size, if the detector accepts it, or more frames per video (frame_num)",
            "clip_size",
        )
    return CutClips(clips, short, unseen, len(frames), size)


def parts_of(frames: Sequence[Frame], clips: Sequence[Clip]) -> list[list[Frame]]:
    """Return the frames of each sample. `clips`: all clips of the dataset, for samples that are rows of clips."""
    if not clips:
        return [[frame] for frame in frames]
    return [[frame._replace(path=path) for path in clips[frame.index].frames] for frame in frames]


def write_clips(path: Path, cut: CutClips) -> None:
    """Write a CSV row per clip: index, video, numbers of its frames, spacing, paths of its first and last frame."""
    rows = (
        (one.row.index, one.row.video, " ".join(map(str, one.numbers)), one.spacing, one.frames[0], one.frames[-1])
        for one in cut.clips
    )
    write_table(path, ("index", "video", "frames", "spacing", "first", "last"), rows)


def clip_starts(frames: int, size: int) -> list[int]:
    """Return the first frame of each clip of a video, as in DeepfakeBench's tests."""
    count = frames // size
    step = (frames - size) // (count - 1) if count > 1 else 0
    return [i * step for i in range(count)]


def _number(path: str, otherwise: int) -> int:
    found = re.findall("[0-9]+", PurePosixPath(path.replace("\\", "/")).stem)
    return int(found[-1]) if found else otherwise


def clip_loader(clips: Sequence[Clip], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """Return a loader like `frame_loader`'s for clips; in a Batch, `frames` holds the clips' rows.

    `pixels` are uint8 (B, T, 3, resolution, resolution), RGB. One unreadable frame makes its clip unreadable, and the
    reason names the frame. Nothing is substituted.
    """
    size = len(clips[0].frames) if clips else 0
    read = partial(_read_clip, clips, resolution)
    return Decoded([clip.row for clip in clips], read, (size, resolution, resolution, 3)).loader(batch_size, workers)


def _read_clip(clips: Sequence[Clip], resolution: int, i: int) -> tuple[np.ndarray, str]:
    """Return a clip's pixels, and the content hash of its first frame. Raises UnreadableImage that names the frame."""
    images, hashes = [], []
    for path in clips[i].frames:
        try:
            data = read_bytes(path)
            images.append(decode_image(data, resolution))
        except UnreadableImage as reason:
            text = str(reason)
            raise UnreadableImage(text if path in text else f"{path}: {text}") from None
        hashes.append(content_hash(data))
    return np.stack(images), hashes[0]
