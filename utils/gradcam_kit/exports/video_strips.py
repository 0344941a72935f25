"""One strip per video (`--video_strips`): its explained frames side by side, each layer's map below them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np

from ..base.decision import CLASS_NAMES
from ..base.files import own_folder, write_table, write_whole
from ..base.text import one_line, shortened
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import encode, text_line
from ..judge.temporal_consistency import TemporalConsistency
from ..run.exports import STRIPS
from ..store.read_run import DatasetOnDisk, sample_maps
from ..store.sample import Sample

FRAME, LINE, NAMES, GAP, MARGIN = 112, 20, 150, 4, 8  # pixels
MOST_FRAMES = 32  # per video, evenly spaced


def write_strips(data: DatasetOnDisk) -> list[Path]:
    """Write `<dataset>/strips/<number>_<forgery>_<video>.png` for every video with explained frames; returns them.

    Beside them `consistency.csv`: how steady the maps are over each video's explained frames.
    """
    videos: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.samples:
        if not sample.lost:
            videos.setdefault((sample.forgery, sample.video), []).append(sample)
    folder = data.folder / STRIPS
    own_folder(folder)
    written, steadiness = [], []
    for number, ((forgery, video), samples) in enumerate(videos.items()):
        # Names come from outside and may be no file names at all; the number keeps them apart.
        name = re.sub("[^A-Za-z0-9-]+", "_", f"{number:04d}_{forgery}_{video}")[:120]
        path = folder / f"{name}.png"
        write_whole(path, encode(strip(samples)))
        written.append(path)
        steadiness += [(path.name, forgery, video, len(samples), *row) for row in _consistency(samples)]
    write_table(folder / "consistency.csv", ("strip", "forgery", "video", "frames", "layer", "consistency"), steadiness)
    return written


def _consistency(samples: list[Sample]) -> list[tuple[str, str]]:
    steadiness = TemporalConsistency()
    for sample in samples:
        steadiness.add(sample_maps(sample, [layer.name for layer in sample.layers]))
    rows = steadiness.consistency()
    return [(layer, f"{value:.4f}") for layer, value in rows.items() if math.isfinite(value)]


def strip(samples: list[Sample]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row of originals, then a row of overlays per layer, the fake probability below."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, MOST_FRAMES).round().astype(int))]
    layers = [layer.name for layer in chosen[0].layers]
    first = chosen[0]
    columns = [np.vstack([*frame_images(one, layers), text_line(f"fake {one.prob_fake:.3f}", FRAME, LINE, 11, True)])
               for one in chosen]  # fmt: skip
    names = [text_line(name, NAMES - MARGIN, FRAME, 11) for name in ("original", *layers)]
    left = _beside_margin(np.vstack([*names, text_line("", NAMES - MARGIN, LINE, 11)]))
    table = np.hstack([left, *(np.pad(one, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for one in columns)])
    forgery, video = (shortened(one_line(name), 40) for name in (first.forgery, first.video))
    title = f"{forgery} · {video} · {CLASS_NAMES[first.label].lower()}"
    heading = _beside_margin(text_line(title, table.shape[1] - MARGIN, LINE + GAP, 13))
    return np.vstack([heading, table])


def _beside_margin(text: np.ndarray) -> np.ndarray:
    return np.pad(text, ((0, 0), (MARGIN, 0), (0, 0)), constant_values=255)


def frame_images(sample: Sample, layers: list[str]) -> list[np.ndarray]:
    """The original and the overlay of every layer, (FRAME, FRAME, 3) uint8 RGB; grey where a file is gone."""
    whole = _read(sample.folder / sample.comparison)
    box = sample.original
    original = None
    if whole is not None and box is not None:
        original = whole[box.top : box.top + box.height, box.left : box.left + box.width]
    drawn = [_read(sample.overlay(layer)) for layer in layers]
    return [
        np.full((FRAME, FRAME, 3), 200, np.uint8)
        if image is None
        else cv2.resize(image, (FRAME, FRAME), interpolation=cv2.INTER_AREA)
        for image in (original, *drawn)
    ]


def _read(path: Path) -> np.ndarray | None:
    try:
        return decode_image(read_file(str(path)), None)
    except UnreadableImage:
        return None
