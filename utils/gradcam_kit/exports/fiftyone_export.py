"""`fiftyone_samples.json`: the explained samples of a run as FiftyOne reads them, with their heatmaps.

    import fiftyone
    dataset = fiftyone.Dataset.from_json("runs/demo/fiftyone_samples.json")

Written by hand in the form that `Dataset.to_json` has, so that FiftyOne is not needed to write it. Paths are absolute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..base.decision import CLASS_NAMES
from ..base.files import write_json
from ..run.exports import FIFTYONE_FILE
from ..store.grey_maps import GREY_MAPS, grey_name
from ..store.read_run import RunOnDisk
from ..store.sample import Sample


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
        "filepath": str(Path(sample.path).resolve()),
        "tags": [sample.dataset, sample.outcome],
        "ground_truth": {"_cls": "Classification", "label": truth},
        "prediction": {"_cls": "Classification", "label": predicted, "confidence": sample.confidence},
        "forgery": sample.forgery,
        "video": sample.video,
        "number": sample.index,
    }
    for layer in sample.layers:
        if not layer.empty:
            # FiftyOne's field names hold no dots: `encoder.layers.5` → `map_encoder_layers_5`.
            file = (sample.folder / GREY_MAPS / grey_name(layer.name)).resolve()
            values["map_" + re.sub("[^A-Za-z0-9]", "_", layer.name)] = {"_cls": "Heatmap", "map_path": str(file)}
    return values
