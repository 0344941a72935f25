"""Detectors put together of a pre-trained tower and a linear head, and the head's training on image labels alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.yardstick.forgeries import Forgery
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.settings.config import DetectorSettings, detector_settings

BATCH = 16


def pixels(images: Iterable[np.ndarray]) -> Tensor:
    """(N, 3, H, W) uint8 of images (H, W, 3)."""
    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous()


def read_settings(settings: dict[str, Any]) -> DetectorSettings:
    """The detector's settings, as a command would read them from a YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return detector_settings(path, {})


def assembled(settings: dict[str, Any], tower: nn.Module | None = None) -> LoadedDetector:
    """A detector of those settings with that tower, or a random one of theirs; its head is random."""
    model: Any = CLIPDetectorWithGradCAM(settings)
    if tower is not None:
        model.backbone = tower
    read = read_settings(settings)
    return LoadedDetector(model=model.eval(), device=torch.device("cpu"), precision="fp32", settings=read)


def fill_head(detector: LoadedDetector, path: Path, forgeries: Iterable[Forgery]) -> LoadedDetector:
    """The detector with the head of that file; where it isn't there, it is trained on the forgeries."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(train_head(detector, list(forgeries)), str(path))
    detector.model.head.load_state_dict(load_file(str(path)))
    return detector


def train_head(detector: LoadedDetector, forgeries: Sequence[Forgery]) -> dict[str, Tensor]:
    """Logistic regression on the CLS token of the pairs' images, as weight and bias of two logits.

    How much it is regularised is chosen on videos that it was not fitted on. Features are computed in bfloat16.
    """
    features = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for side in (pixels(one.pair.real for one in forgeries), pixels(one.pair.fake for one in forgeries)):
            for part in side.split(BATCH):
                features.append(detector.model.features({"image": detector.normalise(part)}).float())
    labels = [0] * len(forgeries) + [1] * len(forgeries)
    values = torch.cat(features).double().numpy()
    scaler = StandardScaler().fit(values)
    scaled, videos = scaler.transform(values), [one.video for one in forgeries] * 2
    folds = list(GroupKFold(5).split(scaled, labels, videos))
    fitted = LogisticRegressionCV(Cs=[0.001, 0.003, 0.01, 0.03, 0.1], cv=folds, max_iter=2000).fit(scaled, labels)
    weight = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - weight @ scaler.mean_)
    half = torch.tensor([-0.5, 0.5])
    return {"weight": half[:, None] * torch.from_numpy(weight).float(), "bias": half * bias}


def save_detector(detector: LoadedDetector, folder: Path, name: str) -> Path:
    """Its checkpoint, and the YAML with which every command loads it; the YAML's path."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = (folder / f"{name}.safetensors").resolve()
    save_file({key: value.contiguous() for key, value in detector.model.state_dict().items()}, str(weights))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**detector.settings.config, "weights_path": str(weights)}), encoding="utf-8")
    return path
