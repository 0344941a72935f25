"""The same image as real and as fake, under whatever names: it is said beside the metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.gradcam_kit.data.folder_dataset import dataset_name
from utils.gradcam_kit.data.frame import DataSettings
from utils.gradcam_kit.data.frames import frame_loader
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.run.predictions import Predictions

WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copy": lambda a, b: shutil.copy(a, b),
    "link": lambda a, b: b.symlink_to(a),
    "hard link": lambda a, b: b.hardlink_to(a),
    "another suffix": lambda a, b: shutil.copy(a, b.with_suffix(".bmp")),
}


def warning(folder: Path) -> str:
    settings = DataSettings(json_folder=folder, folders={dataset_name(folder): folder})
    frames = read_dataset(folder.name, settings)
    found = Predictions(frames)
    for batch in frame_loader(frames, 8, 4, 0):
        found.add(batch.frames, torch.zeros(len(batch.frames), 2), torch.full((len(batch.frames),), 0.5))
        found.stamp(batch.stamps)
    return found.metrics().warning


def faces(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("real", "fake"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / label / f"{number}.png"), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_an_image_in_both_classes_is_said(tmp_path: Path, way: str) -> None:
    folder = faces(tmp_path / "set")
    WAYS[way](folder / "real" / "1.png", folder / "fake" / "other.png")
    said = warning(folder)
    assert said.startswith("1 images are both real and fake, byte for byte, for example ")
    assert str(folder / "real" / "1.png") in said and "other." in said


def test_an_image_twice_in_one_class_is_no_fault_of_labels(tmp_path: Path) -> None:
    folder = faces(tmp_path / "set")
    shutil.copy(folder / "real" / "1.png", folder / "real" / "again.png")
    assert warning(folder) == ""
