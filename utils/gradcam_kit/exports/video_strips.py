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
    """`strips/<number>_<forgery>_<video>.png` for every video, and `consistency.csv`: how steady its maps are."""
    videos: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.samples:
        if not sample.lost:
            videos.setdefault((sample.forgery, sample.video), []).append(sample)
    folder = data.folder / STRIPS
    own_folder(folder)
    written, rows = [], []
    for number, ((forgery, video), samples) in enumerate(videos.items()):
        # Names come from outside and may be no file names at all; the number keeps them apart.
        name = re.sub("[^A-Za-z0-9-]+", "_", f"{number:04d}_{forgery}_{video}")[:120]
        written.append(folder / f"{name}.png")
        write_whole(written[-1], encode(strip(samples)))
        steadiness = TemporalConsistency()
        for sample in samples:
            steadiness.add(sample_maps(sample, [layer.name for layer in sample.layers]))
        rows += [
            (f"{name}.png", forgery, video, len(samples), layer, f"{value:.4f}")
            for layer, value in steadiness.consistency().items()
            if math.isfinite(value)
        ]
    write_table(folder / "consistency.csv", ("strip", "forgery", "video", "frames", "layer", "consistency"), rows)
    return written


def strip(samples: list[Sample]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a row of originals, then a row of overlays per layer, the fake probability below."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, MOST_FRAMES).round().astype(int))]
    first = chosen[0]
    layers = [layer.name for layer in first.layers]
    names = [text_line(name, NAMES - MARGIN, FRAME, 11) for name in ("original", *layers)]
    columns = [_padded(np.vstack([*names, text_line("", NAMES - MARGIN, LINE, 11)]), MARGIN, 0)]
    for one in chosen:
        score = text_line(f"fake {one.prob_fake:.3f}", FRAME, LINE, 11, centred=True)
        columns.append(_padded(np.vstack([*frame_images(one, layers), score]), 0, GAP))
    table = np.hstack(columns)
    forgery, video = (shortened(one_line(name), 40) for name in (first.forgery, first.video))
    title = f"{forgery} · {video} · {CLASS_NAMES[first.label].lower()}"
    return np.vstack([_padded(text_line(title, table.shape[1] - MARGIN, LINE + GAP, 13), MARGIN, 0), table])


def _padded(image: np.ndarray, left: int, right: int) -> np.ndarray:
    return np.pad(image, ((0, 0), (left, right), (0, 0)), constant_values=255)


def frame_images(sample: Sample, layers: list[str]) -> list[np.ndarray]:
    """The original and the overlay of every layer, (FRAME, FRAME, 3) uint8 RGB; grey where a file is gone."""
    drawn = []
    files = [(sample.folder / sample.comparison, sample.original), *((sample.overlay(layer), None) for layer in layers)]
    for path, box in files:
        try:
            image = decode_image(read_file(str(path)), None)
        except UnreadableImage:
            image = np.full((1, 1, 3), 200, np.uint8)
        else:
            image = image if box is None else image[box.top : box.top + box.height, box.left : box.left + box.width]
        drawn.append(cv2.resize(image, (FRAME, FRAME), interpolation=cv2.INTER_AREA))
    return drawn
