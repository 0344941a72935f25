"""Samples written by threads while the detector goes on computing."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from utils.results.sample_folder import Drawn, write_sample


class SampleWriter:
    """Encodes and writes samples in a few threads. A slow disk slows the run, it never fills the memory.

    An exception in a thread reaches the caller at the next `write`, or at the end. What is queued is still written when
    the run is interrupted, and dropped when it fails.
    """

    def __init__(self, image_format: str = "png", save_raw: bool = False, threads: int | None = None) -> None:
        self._image_format = image_format
        self._save_raw = save_raw
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting and (error is None or isinstance(error, KeyboardInterrupt)):
                self._waiting.popleft().result()
        finally:
            for future in self._waiting:
                future.cancel()
            self._pool.shutdown(wait=True)
