"""The embedded detector on its own test set: scores, and where its maps point, against the masks on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from tests.helpers.datasets import read_image
from tests.helpers.paths import ROOT
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import detector_settings

YAML = ROOT / "config" / "detector" / "clip_gradcam_demo.yaml"


class DemoSet(NamedTuple):
    """Every frame of the demo's test set, in the order of its files."""

    paths: list[Path]
    pixels: torch.Tensor  # (N, 3, 224, 224) uint8

    @property
    def fake(self) -> np.ndarray:
        return np.array(["_Fake" in str(path) for path in self.paths])

    def mask(self, i: int) -> np.ndarray:
        """(224, 224) bool, from the file beside the frame."""
        path = self.paths[i]
        return read_image(path.parents[2] / "masks" / path.parent.name / path.name)[..., 0] > 127


@pytest.fixture(scope="module")
def test_set(made_demo: Path) -> DemoSet:
    paths = sorted((made_demo / "data" / "demo").glob("*/frames/test_*/*.png"))
    images = [cv2.cvtColor(read_image(path), cv2.COLOR_BGR2RGB) for path in paths]
    return DemoSet(paths, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())


@pytest.fixture(scope="module")
def embedded() -> LoadedDetector:
    settings = detector_settings(YAML, {})
    assert settings.weights_path is not None
    assert settings.weights_path.stat().st_size <= 6 * 2**20
    return load_detector(settings, torch.device("cpu"))


@pytest.fixture(scope="module")
def prob_fake(embedded: LoadedDetector, test_set: DemoSet) -> np.ndarray:
    return torch.cat([embedded.predict(part)[1] for part in test_set.pixels.split(50)]).numpy()


@pytest.mark.slow
def test_scores_leave_mistakes_to_look_at(prob_fake: np.ndarray, test_set: DemoSet) -> None:
    assert 0.95 <= roc_auc_score(test_set.fake, prob_fake) <= 0.995


@pytest.mark.slow
def test_hottest_pixel_of_the_last_block_lies_in_the_forgery(
    embedded: LoadedDetector, prob_fake: np.ndarray, test_set: DemoSet
) -> None:
    """Grad-CAM at the last block, for at least nine in ten detected fakes; a random pixel hits as often as the mask is big."""
    blocks = yaml.safe_load(YAML.read_text())["backbone_config"]["architecture"]["num_hidden_layers"]
    last = f"encoder.layers.{blocks - 1}"
    detected = np.flatnonzero(test_set.fake & (prob_fake > 0.5))
    assert len(detected) > 200
    rng = np.random.default_rng(0)
    hits, random_hits = [], []
    for part in np.array_split(detected, len(detected) // 50):
        image = embedded.normalise(test_set.pixels[part])
        explanation = embedded.model.explain({"image": image}, [last], "gradcam", "fake", site="layer_norm1")
        maps = explanation.layers[last].normalised.numpy()
        for i, heat in zip(part, maps, strict=True):
            mask = test_set.mask(int(i))
            hits.append(mask[np.unravel_index(heat.argmax(), heat.shape)])
            random_hits.append(mask[tuple(rng.integers(0, 224, 2))])
    print(f"pointing game {np.mean(hits):.3f}, random {np.mean(random_hits):.3f}, {len(hits)} detected fakes")
    assert np.mean(hits) >= 0.9
    assert np.mean(random_hits) < 0.1


@pytest.mark.slow
def test_the_maps_that_the_demo_draws_point_into_the_forgery(
    embedded: LoadedDetector, prob_fake: np.ndarray, test_set: DemoSet
) -> None:
    """As its YAML has them: every layer, method and site."""
    detected = np.flatnonzero(test_set.fake & (prob_fake > 0.5))[::3]
    masks = np.stack([test_set.mask(int(i)) for i in detected])
    maps = embedded.model.generate_gradcam({"image": embedded.normalise(test_set.pixels[detected])}, target="fake")
    assert list(maps) == ["sum"]
    for layer, heat in maps.items():
        hottest = heat.numpy().reshape(len(detected), -1).argmax(axis=1)
        hits = masks.reshape(len(detected), -1)[np.arange(len(detected)), hottest]
        assert hits.mean() >= 0.95, layer
