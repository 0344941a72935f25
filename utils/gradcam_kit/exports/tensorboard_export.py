"""A run's metrics, precision-recall curves and overlays for TensorBoard (`--tensorboard DIR`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import text_line
from ..store.read_run import DatasetOnDisk, RunOnDisk
from ..store.sample import LayerFacts, Sample

IMAGES = 50  # samples per dataset: TensorBoard keeps every image in memory
LINE, LETTERS = 20, 12  # height of a caption and of its letters, in pixels


def write_tensorboard(run: RunOnDisk, folder: Path) -> None:
    """Write one events file into `folder`. Needs the package tensorboard.

    One tag per dataset and layer, `<dataset>/<layer>`, whose slider steps through the samples: wrong predictions first,
    the most confident of them first.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for data in run.datasets:
            for name, value in (data.metrics or {}).items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{data.name}/{name}", value)
            if len(set(data.label.tolist())) == 2:
                writer.add_pr_curve(f"{data.name}/precision-recall", data.label, data.prob_fake)
            for step, sample in enumerate(_worst_first(data)):
                for layer in sample.layers:
                    try:
                        image = captioned(sample, layer)
                    except UnreadableImage:
                        continue  # deleted since; the report says so
                    writer.add_image(f"{data.name}/{layer.name}", image, step, dataformats="HWC")


def captioned(sample: Sample, layer: LayerFacts) -> np.ndarray:
    """One layer's overlay (H, W, 3) uint8 RGB above the sample's number and result. Raises UnreadableImage."""
    overlay = decode_image(read_file(str(sample.overlay(layer.name))), None)
    text = f"sample {sample.index}  {sample.outcome}  fake {sample.prob_fake:.3f}"
    return np.vstack([overlay, text_line(text, overlay.shape[1], LINE, LETTERS, centred=True)])


def _worst_first(data: DatasetOnDisk) -> list[Sample]:
    there = [sample for sample in data.samples if not sample.lost]
    return sorted(there, key=lambda sample: (bool(sample.correct), -sample.confidence))[:IMAGES]
