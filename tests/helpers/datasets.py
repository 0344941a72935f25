"""Small test sets on disk in DeepfakeBench's layout, and what a run writes about them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml

from tests.helpers.detectors import PIXELS, tiny_config
from utils.gradcam_kit.settings.config import DataSettings


def read_image(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8, blue first, as OpenCV reads it; fails where there is no image."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


class DataTree(NamedTuple):
    """A small test set on disk in DeepfakeBench's layout, and the YAML files that go with it."""

    folder: Path
    detector_yaml: Path
    test_yaml: Path
    frames: dict[str, list[Path]]  # label name → its frames

    def arguments(self, *more: str | Path) -> list[str]:
        """The flags every run needs, then `more`."""
        flags = ["--detector_path", self.detector_yaml, "--test_config", self.test_yaml, "--device", "cpu", *more]
        return [str(flag) for flag in flags]


def make_data_tree(folder: Path, weights: Path, videos: int = 4, frames: int = 3, **config: Any) -> DataTree:
    """`videos` real and as many fake videos of random images; datasets `toy` (both) and `toy_fake` (fakes only)."""
    rng = np.random.default_rng(5)
    labels: dict[str, Any] = {}
    paths: dict[str, list[Path]] = {}
    for label in ("toy_Real", "toy_Fake"):
        paths[label] = []
        for v in range(videos):
            names = []
            for f in range(frames):
                name = f"{label}/frames/{v:03d}/{f:03d}.png"
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
                names.append(name)
                paths[label].append(path)
            labels.setdefault(label, {"test": {}})["test"][f"{v:03d}"] = {"label": label, "frames": names}
    (folder / "dataset_json").mkdir(exist_ok=True)
    for name, part in (("toy", labels), ("toy_fake", {"toy_Fake": labels["toy_Fake"]})):
        (folder / "dataset_json" / f"{name}.json").write_text(json.dumps({name: part}))
    detector_yaml, test_yaml = folder / "tiny.yaml", folder / "test_config.yaml"
    detector_yaml.write_text(
        yaml.safe_dump(
            {
                "model_name": "clip_gradcam",
                **{key: value for key, value in tiny_config().items() if key != "gradcam_enabled"},
                "weights_path": str(weights),
                "test_dataset": ["toy"],
                "resolution": PIXELS,
                "frame_num": {"test": 8},
                "test_batchSize": 5,
                "workers": 0,
                "gradcam_layers": ["encoder.layers.3", "encoder.layers.1"],
                **config,
            }
        )
    )
    test_yaml.write_text(
        yaml.safe_dump(
            {
                "dataset_json_folder": str(folder / "dataset_json"),
                "dataset_root_rgb": str(folder),
                "label_dict": {"toy_Real": 0, "toy_Fake": 1},
            }
        )
    )
    return DataTree(folder, detector_yaml, test_yaml, paths)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def change_yaml(path: Path, **changes: Any) -> None:
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del values[key]
        else:
            values[key] = value
    path.write_text(yaml.safe_dump(values))


LABELS = {"FF-real": 0, "FF-DF": 1, "FF-F2F": 1, "Celeb_Real": 0, "Celeb_Fake": 1, "other": 7}


def data_settings(folder: Path, **changes: Any) -> DataSettings:
    base = DataSettings(json_folder=folder, root=folder / "rgb", label_dict=LABELS, resolution=16)
    return replace(base, **changes)
