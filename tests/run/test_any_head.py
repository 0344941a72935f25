"""Whole runs of detectors with one logit and with named classes: every file goes by the same three scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import test_with_gradcam
from detectors import DETECTOR
from tests.helpers.datasets import DataTree, change_yaml, rows_of
from tests.helpers.detectors import PIXELS, AnyHead, spread, tiny_config
from utils.gradcam_kit.measure.perturbation import transplanted
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import run_settings

NAMES = [{"pristine": "real"}, "deepfakes", {"studio": "real"}, "face2face"]
EVERYTHING = ["--gradcam_enabled", "--save_all_predictions", "--save_raw"]


class _WithMaps(AnyHead):
    """Registered as the run finds detectors: a class, not a function."""


def run(tree: DataTree, monkeypatch: pytest.MonkeyPatch, logits: int, *flags: str, **config: Any) -> Path:
    """A run of such a detector with weights of its own; returns its folder."""
    torch.manual_seed(0)
    model = spread(AnyHead(tiny_config(), logits))
    model.head.bias.data[-1] += 0.0 if logits == 1 else 3.0  # so that there are detected fakes
    torch.save(model.state_dict(), tree.folder / "head.pth")

    def build(self: Any, given: dict[str, Any]) -> None:
        AnyHead.__init__(self, given, logits)

    monkeypatch.setattr(_WithMaps, "__init__", build)
    monkeypatch.setitem(DETECTOR.data, "any_head_gradcam", _WithMaps)
    change_yaml(tree.detector_yaml, model_name="any_head", weights_path=str(tree.folder / "head.pth"), **config)
    out = tree.folder / "out"
    assert test_with_gradcam.main(tree.arguments(*flags, "--gradcam_output_dir", str(out))) == 0
    return out


def logits_of(tree: DataTree, path: str, logits: int) -> np.ndarray:
    """The head's logits in float64, from the files on disk."""
    model = AnyHead(tiny_config(), logits)
    model.load_state_dict(torch.load(tree.folder / "head.pth", weights_only=True))
    read: Any = cv2.imread(path)
    image = cv2.resize(read[..., ::-1], (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255
    with torch.no_grad():
        return model.double().eval()({"image": (pixels - 0.5) / 0.5})["cls"][0].numpy()


def test_one_logit(data_tree: DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(data_tree, monkeypatch, 1, *EVERYTHING, gradcam_target="predicted")
    rows = rows_of(out / "toy")
    assert len(rows) == 24
    for row in rows:
        (z,) = logits_of(data_tree, row["path"], 1)
        assert float(row["logit_fake"]) == pytest.approx(z, abs=1e-4)
        assert float(row["logit_real"]) == -float(row["logit_fake"])
        assert float(row["prob_fake"]) == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)
        assert row["predicted"] == str(int(z > 0))
    said = [json.loads(path.read_text()) for path in out.glob("toy/sample*/sample*.json")]
    assert {(one["predicted"], one["target"]) for one in said} <= {(0, "predicted (real)"), (1, "predicted (fake)")}
    metrics = json.loads((out / "metrics.json").read_text())["toy"]
    assert metrics["acc"] == np.mean([row["predicted"] == row["label"] for row in rows])


def test_named_classes(data_tree: DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*EVERYTHING, "--gradcam_target", "face2face", "--gradcam_samples", "2"]
    out = run(data_tree, monkeypatch, 4, *flags, gradcam_classes=NAMES)
    for row in rows_of(out / "toy")[:6]:
        odds = np.exp(logits_of(data_tree, row["path"], 4))
        assert float(row["prob_fake"]) == pytest.approx((odds[1] + odds[3]) / odds.sum(), abs=1e-5)
        assert float(row["logit_real"]) == pytest.approx(np.log(odds[0] + odds[2]), abs=1e-4)
        assert float(row["logit_fake"]) == pytest.approx(np.log(odds[1] + odds[3]), abs=1e-4)
    assert {json.loads(path.read_text())["target"] for path in out.glob("toy/sample*/sample*.json")} == {"face2face"}


def test_explanations_of_such_heads_are_evaluated(data_tree: DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"gradcam_layers": ["encoder.layers.3"], "gradcam_classes": NAMES}
    out = run(data_tree, monkeypatch, 4, "--evaluate_explanations", "--explanation_samples", "4", **config)
    found = json.loads((out / "explanations.json").read_text())["toy"]
    assert found["detected_fakes"] > 0 and found["rows"]


@pytest.mark.parametrize(("logits", "config"), [(1, {}), (4, {"gradcam_classes": NAMES})])
def test_transplant_measures_by_the_same_scores(
    logits: int, config: dict[str, Any], data_tree: DataTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One exchanged patch, by the formula in float64."""
    out = run(data_tree, monkeypatch, logits, **config)
    settings = run_settings(data_tree.detector_yaml, data_tree.test_yaml, {"gradcam_enabled": True})
    detector = load_detector(settings.detector, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    fake, real = torch.randint(0, 256, (2, 1, 3, PIXELS, PIXELS), generator=generator, dtype=torch.uint8)
    changed = torch.zeros(1, 4, 4, dtype=torch.bool)
    changed[0, 1, 2] = True
    found = transplanted(detector, fake, real, changed, 4)
    model = AnyHead(tiny_config(), logits)
    model.load_state_dict(torch.load(out.parent / "head.pth", weights_only=True))

    def margin(pixels: torch.Tensor) -> float:
        with torch.no_grad():
            z = model.double().eval()({"image": (pixels.double() / 255 - 0.5) / 0.5})["cls"][0]
        return float(z[0] if logits == 1 else z[[1, 3]].logsumexp(0) - z[[0, 2]].logsumexp(0))

    side = PIXELS // 4
    place = (..., slice(side, 2 * side), slice(2 * side, 3 * side))
    without, alone = fake.clone(), real.clone()
    without[place], alone[place] = real[place], fake[place]
    expected = ((margin(fake) - margin(without)) + (margin(alone) - margin(real))) / 2
    assert float(found[0, 1, 2]) == pytest.approx(expected, rel=1e-3) and int((found != 0).sum()) == 1
