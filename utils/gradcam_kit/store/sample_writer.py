"""Saving and drawing of samples in threads, while the detector continues."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .database import RunDatabase
from .sample import Sample
from .sample_folder import RenderedSample, write_sample

# Bytes of an image, its maps and its texts, measured on face crops of 224 x 224.
BYTES_PER_PIXEL = {"png": 1.5, "jpg": 0.25, "webp": 0.15}
MAP_BYTES, RAW_BYTES, TEXT_BYTES = 400, 2500, 2500  # both grey maps of a layer, both raw maps of one, metadata and JSON


def expected_output(
    samples: int, layers: int, resolution: int, image_format: str = "png", save_raw: bool = False
) -> tuple[int, int]:
    """Estimate the number of files, and their bytes, of `samples` samples with `layers` layers each."""
    image_bytes = BYTES_PER_PIXEL[image_format] * resolution**2
    files = 3 * layers + 3 + save_raw  # overlay and two grey maps per layer; comparison, metadata, JSON
    size = (2 * layers + 1) * image_bytes + layers * (MAP_BYTES + save_raw * RAW_BYTES) + TEXT_BYTES
    return samples * files, round(samples * size)


NON_FINITE = "a map was NaN or infinite"
Spans = Mapping[str, tuple[int, int]]  # layer → pixels that its map spans


def saves(save_images: str, correct: bool | None) -> bool:
    """Tell whether an image gets files. `save_images`: "all", "wrong" or "none"; `correct`: its prediction is right."""
    return save_images == "all" or (save_images == "wrong" and not correct)


class SampleWriter:
    """Saves explained images: maps to the database, files by a few threads. A slow disk slows the run.

    An image's row is inserted once its files are on disk; the caller commits. An exception in a thread reaches the
    caller at the next `write`, or at the end. Queued samples are still written after an interruption, but dropped after
    a failure.
    """

    def __init__(
        self,
        database: RunDatabase,
        key: str,
        folder: Path,
        image_format: str = "png",
        save_raw: bool = False,
        save_images: str = "all",
        threads: int | None = None,
    ) -> None:
        """`folder`: the dataset's folder. `key`: a hash of everything that its maps depend on."""
        self._database, self._key, self._folder = database, key, folder
        self._how, self._save_images = (image_format, save_raw), save_images
        threads = threads or min(4, os.cpu_count() or 1)
        self._most_waiting = 4 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="draw")
        self._waiting: deque[tuple[Sample, Future[dict[str, str]]]] = deque()

    def write(self, drawn: RenderedSample, spans: Spans) -> None:
        """Save one sample. Waits while too many are queued."""
        sample = drawn.sample
        for layer in drawn.layers:
            blobs = (np.ascontiguousarray(grid, np.float32).tobytes() for grid in (layer.raw, layer.signed))
            row = sample.dataset, sample.index, layer.name, *layer.raw.shape, *spans[layer.name], *blobs
            self._database.put("map", [row], self._key)
        if not saves(self._save_images, sample.correct):
            self._put(sample, {})
            return
        while self._waiting and (len(self._waiting) >= self._most_waiting or self._waiting[0][1].done()):
            self._settle()
        job = self._pool.submit(write_sample, self._folder / f"sample{sample.index}", drawn, *self._how)
        self._waiting.append((sample, job))

    def lose(self, dataset: str, index: int, reason: str) -> None:
        """Record why an image has no sample."""
        self._database.put("sample", [(dataset, index, "", "", reason)], self._key)

    def _settle(self) -> None:
        sample, job = self._waiting.popleft()
        self._put(sample, job.result())

    def _put(self, sample: Sample, files: Mapping[str, str]) -> None:
        values = sample.dataset, sample.index, json.dumps(sample.to_json()), json.dumps(files), ""
        self._database.put("sample", [values], self._key)

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            while self._waiting and (error is None or isinstance(error, KeyboardInterrupt)):
                self._settle()
        finally:
            for _, job in self._waiting:
                job.cancel()
            self._pool.shutdown(wait=True)
