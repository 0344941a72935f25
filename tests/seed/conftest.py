"""What the first guide takes for granted: a `training` folder with the library in it, weights, an image and a test set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.hosts import install, make_host, run_python

# 24 blocks as ViT-L/14 has, so that every layer that the guide names is there, but narrow.
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 24, "num_attention_heads": 2,
         "patch_size": 32, "image_size": 224}  # fmt: skip


def typed(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of the guide as it stands there."""
    words = line.replace("\\\n", " ").split()
    assert words.pop(0) == "python"
    return run_python(*words, cwd=cwd)


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host whose detectors/utils holds code of its own, after the installation."""
    training = make_host(tmp_path_factory.mktemp("seed"), whole=True)
    (training / "detectors" / "utils").mkdir()
    (training / "detectors" / "utils" / "__init__.py").write_text("")
    (training / "detectors" / "utils" / "slowfast.py").write_text("THEIRS = 1\n")
    done = install(training)
    assert done.returncode == 0, done.stderr
    here = training / "path" / "to" / "your"
    here.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    cv2.imwrite(str(here / "image.jpg"), noise)
    detector_yaml = training / "config" / "detector" / "clip_gradcam.yaml"
    config = yaml.safe_load(detector_yaml.read_text(encoding="utf-8"))
    config = {**config, "backbone_config": {"architecture": TOWER}, "workers": 0}
    detector_yaml.write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    torch.save(CLIPDetectorWithGradCAM(config).state_dict(), here / "weights.pth")
    write_faceforensics(training)
    return training


def write_faceforensics(training: Path) -> None:
    labels: dict[str, Any] = {}
    for label in ("FF-real", "FF-DF"):
        frames = []
        for number in range(3):
            path = training / "ff" / label / "frames" / "000" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(path), noise)
            frames.append(str(path))
        labels[label] = {"test": {"c23": {"000": {"label": label, "frames": frames}}}}
    folder = training.parent / "preprocessing" / "dataset_json"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": labels}))
    test_config = training / "config" / "test_config.yaml"
    config = yaml.safe_load(test_config.read_text(encoding="utf-8"))
    config["label_dict"] = {**config.get("label_dict", {}), "FF-real": 0, "FF-DF": 1}
    test_config.write_text(yaml.safe_dump(config))


@pytest.fixture
def model(training: Path) -> Any:
    """The detector of the guide's third option, as its YAML describes it, for images that vary."""
    config = yaml.safe_load((training / "config" / "detector" / "clip_gradcam.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    return CLIPDetectorWithGradCAM(config).eval()
