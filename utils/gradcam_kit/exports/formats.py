"""Exports of a finished run: for FiftyOne, for TensorBoard, and as a strip of images per video."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..base.decision import CLASS_NAMES
from ..base.files import create_output_folder, write_json, write_table, write_whole
from ..base.text import in_number_order, one_line, shortened
from ..data.images import UnreadableImage
from ..drawing.overlays import encode, text_line
from ..judge.localisation import TemporalConsistency
from ..run.exports import FIFTYONE_FILE, STRIPS
from ..store.read_run import DatasetOnDisk, RunOnDisk, overlays, sample_maps
from ..store.sample import Sample
from ..store.sample_folder import GREY_MAPS

IMAGES = 50  # samples per dataset: TensorBoard keeps every image in memory
LETTERS = 12  # height in pixels of a caption's letters in TensorBoard
FRAME, LINE, NAMES, GAP, MARGIN = 112, 20, 150, 4, 8  # pixels in strips; LINE is every caption's height
MOST_FRAMES = 32  # per video, evenly spaced


def write_fiftyone(run: RunOnDisk) -> Path:
    """Write `fiftyone_samples.json` for `fiftyone.Dataset.from_json`, and return its path.

    It has the form of `Dataset.to_json`, with absolute paths. Samples without images are skipped.
    """
    path = run.folder / FIFTYONE_FILE
    samples = [fiftyone_sample(sample) for data in run.datasets for sample in data.samples if sample.comparison]
    write_json(path, {"name": f"{run.folder.resolve().name} heatmaps", "media_type": "image", "samples": samples})
    return path


def fiftyone_sample(sample: Sample) -> dict[str, Any]:
    """Return one sample: label, prediction, outcome, and a Heatmap field per layer that is not empty."""
    truth, predicted = (CLASS_NAMES[label].lower() for label in (sample.label, sample.predicted))
    values = {
        "filepath": str(Path(sample.path).resolve()), "tags": [sample.dataset, sample.outcome],
        "ground_truth": {"_cls": "Classification", "label": truth},
        "prediction": {"_cls": "Classification", "label": predicted, "confidence": sample.confidence},
        "forgery": sample.forgery, "video": sample.video, "number": sample.index,
    }  # fmt: skip
    for layer in sample.layers:
        if not layer.empty:
            # FiftyOne's field names cannot contain dots: `encoder.layers.5` → `map_encoder_layers_5`.
            file = (sample.folder / GREY_MAPS / f"{layer.name}.png").resolve()
            values["map_" + re.sub("[^A-Za-z0-9]", "_", layer.name)] = {"_cls": "Heatmap", "map_path": str(file)}
    return values


def write_tensorboard(run: RunOnDisk, folder: Path) -> None:
    """Write an events file with a tag `<dataset>/<layer>` each; its slider starts with the worst sample."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for data in run.datasets:
            for name, value in (data.metrics or {}).items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{data.name}/{name}", value)
            if len(set(data.label.tolist())) == 2:
                writer.add_pr_curve(f"{data.name}/precision-recall", data.label, data.prob_fake)
            there = [sample for sample in data.samples if not sample.lost]
            there.sort(key=lambda sample: (bool(sample.correct), -sample.confidence))  # wrong and confident ones first
            for step, sample in enumerate(there[:IMAGES]):
                try:
                    drawn = overlays(sample)[1]
                except UnreadableImage:
                    continue  # deleted since; the report mentions it
                for layer, overlay in drawn.items():
                    image = captioned(sample, overlay)
                    writer.add_image(f"{data.name}/{layer}", image, step, dataformats="HWC")


def captioned(sample: Sample, overlay: np.ndarray) -> np.ndarray:
    """Put the sample's number and result below an overlay (H, W, 3) uint8 RGB."""
    text = f"sample {sample.index}  {sample.outcome}  fake {sample.prob_fake:.3f}"
    return np.vstack([overlay, text_line(text, overlay.shape[1], LINE, LETTERS, centred=True)])


def write_strips(data: DatasetOnDisk) -> list[Path]:
    """Write `strips/<number>_<forgery>_<video>.png` per video, and `consistency.csv` with its maps' consistency."""
    videos: dict[tuple[str, str], list[Sample]] = {}
    for sample in data.samples:
        if not sample.lost:
            videos.setdefault((sample.forgery, sample.video), []).append(sample)
    folder = data.folder / STRIPS
    create_output_folder(folder)
    written, rows = [], []
    for number, ((forgery, video), unordered) in enumerate(videos.items()):
        samples = sorted(unordered, key=lambda sample: in_number_order(sample.path))  # a run's order may differ
        # Names come from outside and may not be valid file names; the number keeps them unique.
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
    """Draw a row of originals, a row of overlays per layer, and P(fake) below: (H, W, 3) uint8 RGB."""
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
    """Return the original and every layer's overlay, (FRAME, FRAME, 3) uint8 RGB; grey if a file is missing."""
    try:
        image, drawn = overlays(sample)
    except UnreadableImage:
        return [np.full((FRAME, FRAME, 3), 200, np.uint8)] * (1 + len(layers))
    images = [image, *drawn.values()]
    return [cv2.resize(one, (FRAME, FRAME), interpolation=cv2.INTER_AREA) for one in images]
