"""Decoded batches of frames. Each `Frame` stays with its pixels.

Nothing is shuffled, and no frame replaces another: an unreadable one is listed with its reason.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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


class Decoded(Dataset[Any]):
    """Frames or clips, decoded one by one: item i with its pixels, or with the reason why it cannot be read.

    `rows` represent the items. `read` returns item i's pixels, of the shape `shape`, and content hash.
    """

    def __init__(
        self, rows: Sequence[Frame], read: Callable[[int], tuple[np.ndarray, str]], shape: tuple[int, ...]
    ) -> None:
        self.rows, self.read, self.shape = rows, read, shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Frame, np.ndarray | str, Stamp]:
        row = self.rows[i]
        before = Stamp.of(row.path)  # first: a change during reading leaves a later time
        try:
            pixels, content = self.read(i)
            return row, pixels, before._replace(content=content)
        except UnreadableImage as reason:
            return row, str(reason), before

    def collate(self, items: Sequence[tuple[Frame, np.ndarray | str, Stamp]]) -> Batch:
        stamps = {row.index: stamp for row, _, stamp in items}
        unreadable = [(row, reason) for row, reason, _ in items if isinstance(reason, str)]
        images = [pixels for _, pixels, _ in items if not isinstance(pixels, str)]
        stacked = np.stack(images) if images else np.empty((0, *self.shape), dtype=np.uint8)
        # Stack with the channels last and view them first: copying bytes is twenty times faster than moving channels.
        pixels = torch.from_numpy(stacked).movedim(-1, -3)
        return Batch([row for row, read, _ in items if not isinstance(read, str)], pixels, unreadable, stamps)

    def loader(self, batch_size: int, workers: int) -> DataLoader[Any]:
        """Return a DataLoader of `Batch`; see `frame_loader`."""
        lmdb = bool(self.rows) and in_lmdb(self.rows[0].path)
        return DataLoader(
            self,
            batch_size=batch_size,
            shuffle=False,
            num_workers=max(workers, 1) if lmdb else workers,  # a damaged LMDB kills its reader
            collate_fn=self.collate,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # otherwise each pass draws from the global one
            pin_memory=torch.cuda.is_initialized(),  # false if the run does not use the device
        )


def frame_loader(frames: Sequence[Frame], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """Return a DataLoader whose k-th `Batch` holds frames[k * batch_size : (k + 1) * batch_size], in order.

    Frames that cannot be read are in `Batch.unreadable` instead; without a readable frame, pixels have the shape
    (0, 3, resolution, resolution). `workers` processes decode; with 0, this one does. The global random state is
    neither used nor changed.
    """
    read = partial(_read_frame, frames, resolution)
    return Decoded(frames, read, (resolution, resolution, 3)).loader(batch_size, workers)


def _read_frame(frames: Sequence[Frame], resolution: int, i: int) -> tuple[np.ndarray, str]:
    data = read_bytes(frames[i].path)
    return decode_image(data, resolution), content_hash(data)


def start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the main process ends its workers
    cv2.setNumThreads(0)  # the workers already run in parallel
    # OpenCV need not print about a damaged file: the reason is reported. Before 4.6 the switch is in another module.
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)
