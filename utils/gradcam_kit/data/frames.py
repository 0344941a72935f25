"""Decoded batches of frames. A `Frame` travels with its pixels all the way.

Nothing is shuffled, and no frame is ever replaced by another: what cannot be read is listed with its reason.
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
    """Some frames in order, and apart from them those that could not be read, with the reason."""

    frames: list[Frame]
    pixels: torch.Tensor  # uint8 (len(frames), 3, resolution, resolution), RGB, on the CPU
    unreadable: list[tuple[Frame, str]]
    stamps: Mapping[int, Stamp] = {}  # index of each of these frames → what its file was

    def pin_memory(self) -> Batch:
        """What the loader calls in a run on a CUDA device, which copies from such memory while it computes."""
        return self._replace(pixels=self.pixels.pin_memory())


class _FrameDataset(Dataset[Any]):
    """Frame i with its pixels, or with the reason why there are none."""

    def __init__(self, frames: Sequence[Frame], resolution: int) -> None:
        self.frames, self.resolution = frames, resolution

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> tuple[Frame, np.ndarray | str, Stamp]:
        frame = self.frames[i]
        before = Stamp.of(frame.path)  # a change while it is read leaves a time that is later than this one
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
        # Stacked as they come, and seen as (B, 3, H, W): copying the bytes costs a twentieth of moving the channels.
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else empty
        return Batch(frames, pixels, unreadable, stamps)


def frame_loader(frames: Sequence[Frame], resolution: int, batch_size: int, workers: int) -> DataLoader[Any]:
    """A DataLoader that yields a `Batch` for frames[0 : batch_size], frames[batch_size : 2 * batch_size], ...

    Batch k holds frames[k * batch_size : (k + 1) * batch_size], in order, less those that cannot be read, which are in
    `Batch.unreadable`; a batch without one readable frame has pixels of shape (0, 3, resolution, resolution). Decoding
    happens in `workers` processes, or here where workers is 0. The global random state is neither used nor changed.
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
        generator=torch.Generator(),  # else each pass draws from the global one
        pin_memory=torch.cuda.is_initialized(),  # not where there is a device that the run does not use
    )


def start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers itself
    cv2.setNumThreads(0)  # the workers are the parallelism
    # What OpenCV would print of a damaged file comes back as its reason. Before 4.6 the switch is in another place.
    getattr(cv2.utils, "logging", cv2).setLogLevel(0)
