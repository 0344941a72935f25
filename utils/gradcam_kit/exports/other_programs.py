"""The explained samples of a run for other programs: FiftyOne (`fiftyone_samples.json`) and TensorBoard.

    import fiftyone
    dataset = fiftyone.Dataset.from_json("runs/demo/fiftyone_samples.json")

The file has the form of FiftyOne's `Dataset.to_json`, which is not needed to write it. Paths are absolute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..base.decision import CLASS_NAMES
from ..base.files import write_json
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import text_line
from ..run.exports import FIFTYONE_FILE
from ..store.grey_maps import GREY_MAPS, grey_name
from ..store.read_run import RunOnDisk
from ..store.sample import LayerFacts, Sample

IMAGES = 50  # samples per dataset: TensorBoard keeps every image in memory
LINE, LETTERS = 20, 12  # height of a caption and of its letters, in pixels


def write_fiftyone(run: RunOnDisk) -> Path:
    """Write the file into the run's folder; returns its path. Samples whose images are gone are left out."""
    path = run.folder / FIFTYONE_FILE
    samples = [fiftyone_sample(sample) for data in run.datasets for sample in data.samples if not sample.lost]
    write_json(path, {"name": f"{run.folder.resolve().name} heatmaps", "media_type": "image", "samples": samples})
    return path


def fiftyone_sample(sample: Sample) -> dict[str, Any]:
    """One sample: label, prediction, outcome, and one Heatmap field a layer that is not empty."""
    truth, predicted = (CLASS_NAMES[label].lower() for label in (sample.label, sample.predicted))
    values = {
        "filepath": str(Path(sample.path).resolve()), "tags": [sample.dataset, sample.outcome],
        "ground_truth": {"_cls": "Classification", "label": truth},
        "prediction": {"_cls": "Classification", "label": predicted, "confidence": sample.confidence},
        "forgery": sample.forgery, "video": sample.video, "number": sample.index,
    }  # fmt: skip
    for layer in sample.layers:
        if not layer.empty:
            # FiftyOne's field names hold no dots: `encoder.layers.5` → `map_encoder_layers_5`.
            file = (sample.folder / GREY_MAPS / grey_name(layer.name)).resolve()
            values["map_" + re.sub("[^A-Za-z0-9]", "_", layer.name)] = {"_cls": "Heatmap", "map_path": str(file)}
    return values


def write_tensorboard(run: RunOnDisk, folder: Path) -> None:
    """One events file in `folder`, with a tag `<dataset>/<layer>` each, whose slider steps from the worst sample on."""
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
