"""Clips of videos: which frames of a dataset each has, and decoded batches of them.

The clips are those that DeepfakeBench cuts for a detector with `video_mode: true`, without its shuffle: of the frames
that are taken of a video, in the order of their numbers, as many whole clips as there are, their first frames spread
evenly. A video with fewer frames than a clip has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..base.errors import InputError
from ..base.files import write_table
from .frame import DataSettings, Frame, evenly_spaced
from .frame_paths import Stamp, content_hash, read_bytes
from .frames import Batch, start_worker
from .images import UnreadableImage, decode_image
from .readers import read_dataset


class Clip(NamedTuple):
    """Some frames of one video, in order. `row` stands for it: a frame with the clip's place, and its first path."""

    row: Frame
    frames: tuple[str, ...]  # paths

    @property
    def numbers(self) -> list[int]:
        """The number in each frame's name; its place in the clip where the name has none."""
        return [_number(path, place) for place, path in enumerate(self.frames)]

    @property
    def spacing(self) -> int:
        """The median step between the numbers of two frames beside each other; 0 of a single frame."""
        numbers = self.numbers
        steps = sorted(after - before for before, after in pairwise(numbers))
        return steps[len(steps) // 2] if steps else 0


class CutClips(NamedTuple):
    """The clips of a dataset, and what was left out."""

    clips: list[Clip]
    short: list[str]  # videos with fewer frames than a clip
    unseen: int  # frames that are in no clip
    frames: int  # of all videos
    size: int  # frames of a clip

    def lines(self) -> Iterator[str]:
        """What there is, and what no clip shows, for the terminal."""
        videos = len({clip.row.whole_video for clip in self.clips})
        yield f"{len(self.clips)} clips of {self.size} frames from {videos} videos"
        if self.unseen:
            yield f"{self.unseen} of {self.frames} frames are in no clip and were never seen"
        if self.short:
            yield f"{len(self.short)} videos have fewer than {self.size} frames and no clip, first {self.short[0]!r}"


def read_clips(name: str, settings: DataSettings, split: str = "test") -> CutClips:
    """The clips of a dataset, `settings.clip_size` frames each. Raises InputError where no video is long enough."""
    every = replace(settings, frame_num=None, sampling="host_sorted")
    frames = read_dataset(name, every, split)
    return cut_clips(frames, settings.clip_size or 1, settings.clips_per_video, settings.frame_num)


def cut_clips(frames: Sequence[Frame], size: int, per_video: int | None = None, taken: int | None = None) -> CutClips:
    """The clips of a dataset's frames, all of which are given, video after video, in the order of their numbers.

    Args:
        size: frames in a clip.
        per_video: at most so many clips of a video, spread evenly; None: all.
        taken: so many frames of each video are looked at, the first ones; None: all.

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
            " smaller --clip_size, if the detector takes it, or more frames of each video (frame_num)",
            "clip_size",
        )
    return CutClips(clips, short, unseen, len(frames), size)


def write_clips(path: Path, cut: CutClips) -> None:
    """A row for each clip: its index, its video, the numbers of its frames and the paths of its first and last one."""
    rows = (
        [
            clip.row.index,
            clip.row.video,
            " ".join(map(str, clip.numbers)),
            clip.spacing,
            clip.frames[0],
            clip.frames[-1],
        ]
        for clip in cut.clips
    )
    write_table(path, ("index", "video", "frames", "spacing", "first", "last"), rows)


def clip_starts(frames: int, size: int) -> list[int]:
    """The first frame of each clip of a video, as DeepfakeBench places them in its tests."""
    count = frames // size
    step = (frames - size) // (count - 1) if count > 1 else 0
    return [i * step for i in range(count)]


def _number(path: str, otherwise: int) -> int:
    found = re.findall("[0-9]+", PurePosixPath(path.replace("\\", "/")).stem)
    return int(found[-1]) if found else otherwise


class _ClipDataset(Dataset[Any]):
    """Clip i with its pixels, or with the reason why there are none."""

    def __init__(self, clips: Sequence[Clip], resolution: int) -> None:
        self.clips, self.resolution = clips, resolution

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[Frame, np.ndarray | str, Stamp]:
        clip = self.clips[i]
        before, images = Stamp.of(clip.row.path), []
        hashes: list[str] = []
        for path in clip.frames:
            try:
                data = read_bytes(path)
                images.append(decode_image(data, self.resolution))
                hashes.append(content_hash(data))
            except UnreadableImage as reason:
                text = str(reason)
                return clip.row, text if path in text else f"{path}: {text}", before
        return clip.row, np.stack(images), before._replace(content=hashes[0])

    def collate(self, items: Iterable[tuple[Frame, np.ndarray | str, Stamp]]) -> Batch:
        rows, clips, unreadable, stamps = [], [], [], {}
        for row, pixels, stamp in items:
            stamps[row.index] = stamp
            if isinstance(pixels, str):
                unreadable.append((row, pixels))
            else:
                rows.append(row)
                clips.append(pixels)
        size = len(self.clips[0].frames) if self.clips else 0
        empty = torch.empty((0, size, 3, self.resolution, self.resolution), dtype=torch.uint8)
        stacked = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3) if clips else empty
        return Batch(rows, stacked, unreadable, stamps)


def clip_loader(clips: Sequence[Clip], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """As `frame_loader`, of clips: `pixels` are (B, T, 3, resolution, resolution), `frames` the clips' rows.

    A clip with a frame that cannot be read is unreadable as a whole, with that frame's name: nothing is put in the
    place of either.
    """
    dataset = _ClipDataset(clips, resolution)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        num_workers=workers,
        collate_fn=dataset.collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_initialized(),
    )
