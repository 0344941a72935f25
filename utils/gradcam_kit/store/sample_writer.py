"""Samples written by threads while the detector goes on computing."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .sample_folder import Drawn, write_sample

# Measured on face crops of 224 x 224; what a drawn image, its maps and its texts take.
BYTES_PER_PIXEL = {"png": 1.5, "jpg": 0.25, "webp": 0.15}
MAP_BYTES, RAW_BYTES, TEXT_BYTES = 400, 2500, 2500  # both grey maps of a layer, both raw maps of one, metadata and JSON


def expected_output(
    samples: int, layers: int, resolution: int, image_format: str = "png", save_raw: bool = False
) -> tuple[int, int]:
    """How many files `samples` samples of `layers` layers are, and about how many bytes they take."""
    image_bytes = BYTES_PER_PIXEL[image_format] * resolution**2
    files = 3 * layers + 3 + save_raw  # overlay and two grey maps per layer; comparison, metadata, JSON
    size = (2 * layers + 1) * image_bytes + layers * (MAP_BYTES + save_raw * RAW_BYTES) + TEXT_BYTES
    return samples * files, round(samples * size)


class SampleWriter:
    """Encodes and writes samples in a few threads. A slow disk slows the run, it never fills the memory.

    An exception in a thread reaches the caller at the next `write`, or at the end. What is queued is still written when
    the run is interrupted, and dropped when it fails.
    """

    def __init__(self, image_format: str = "png", save_raw: bool = False, threads: int | None = None) -> None:
        self._image_format, self._save_raw = image_format, save_raw
        threads = threads or min(4, os.cpu_count() or 1)
        self._most_waiting = 4 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="draw")
        self._waiting: deque[Future[Path]] = deque()

    def write(self, folder: Path, drawn: Drawn) -> None:
        """Queue one sample; waits while too many are queued."""
        while len(self._waiting) >= self._most_waiting:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(write_sample, folder, drawn, self._image_format, self._save_raw, True))

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            while self._waiting and (error is None or isinstance(error, KeyboardInterrupt)):
                self._waiting.popleft().result()
        finally:
            for future in self._waiting:
                future.cancel()
            self._pool.shutdown(wait=True)
