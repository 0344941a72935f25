"""Decoded batches of frames. Each `Frame` stays with its pixels.

Nothing is shuffled, and no frame replaces another: an unreadable one is listed with its reason.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .frame import Frame
from .frame_paths import Stamp, content_hash, in_lmdb, read_bytes
from .images import UnreadableImage, decode_image


class Batch(NamedTuple):
    """Some frames in order, and separately those that could not be read, with the reason."""

    frames: list[Frame]
    pixels: torch.Tensor  # uint8 (len(frames), 3, resolution, resolution), RGB, on the CPU
    unreadable: list[tuple[Frame, str]]
    stamps: Mapping[int, Stamp] = {}  # index of a frame → stamp of its file

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, from which a CUDA device copies while it computes. For the loader."""
        return self._replace(pixels=self.pixels.pin_memory())


class _FrameDataset(Dataset[Any]):
    """Frame i with its pixels, or with the reason why it cannot be read."""

    def __init__(self, frames: Sequence[Frame], resolution: int) -> None:
        self.frames, self.resolution = frames, resolution

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> tuple[Frame, np.ndarray | str, Stamp]:
        frame = self.frames[i]
        before = Stamp.of(frame.path)  # first: a change during reading leaves a later time
        try:
            data = read_bytes(frame.path)
            return frame, decode_image(data, self.resolution), before._replace(content=content_hash(data))
        except UnreadableImage as reason:
            return frame, str(reason), before

    def collate(self, items: Iterable[tuple[Frame, np.ndarray | str, Stamp]]) -> Batch:
        frames, images, unreadable, stamps = [], [], [], {}
        for frame, image, stamp in items:
            stamps[frame.index] = stamp
            if isinstance(image, str):
                unreadable.append((frame, image))
            else:
                frames.append(frame)
                images.append(image)
        empty = torch.empty((0, 3, self.resolution, self.resolution), dtype=torch.uint8)
        # Stack as (B, H, W, 3) and view as (B, 3, H, W): copying bytes is twenty times faster than moving channels.
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else empty
        return Batch(frames, pixels, unreadable, stamps)


def frame_loader(frames: Sequence[Frame], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """Return a DataLoader whose k-th `Batch` holds frames[k * batch_size : (k + 1) * batch_size], in order.

    Frames that cannot be read are in `Batch.unreadable` instead; without a readable frame, pixels have the shape
    (0, 3, resolution, resolution). `workers` processes decode; with 0, this one does. The global random state is
    neither used nor changed.
    """
    dataset = _FrameDataset(frames, resolution)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        num_workers=max(workers, 1)
        if frames and in_lmdb(frames[0].path)
        else workers,  # a damaged LMDB kills its reader
        collate_fn=dataset.collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # otherwise each pass draws from the global one
        pin_memory=torch.cuda.is_initialized(),  # false if the run does not use the device
    )


def start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process ends its workers
    cv2.setNumThreads(0)  # the workers already run in parallel
    # OpenCV need not print about a damaged file: the reason is reported. Before 4.6 the switch is in another module.
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)
