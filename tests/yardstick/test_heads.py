"""Heads and LayerNorms are trained on image labels, nothing else changes, and every command loads what was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.yardstick import tuning
from benchmarks.yardstick.forgeries import Forgery, Pair
from benchmarks.yardstick.heads import assembled, fill_head, pixels, save_detector
from benchmarks.yardstick.photographs import Face, Photograph
from benchmarks.yardstick.towers import Case, save_case
from benchmarks.yardstick.training import config
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import detector_settings

SIDE, WIDTH, BLOCKS = 32, 16, 2


@pytest.fixture
def detector() -> LoadedDetector:
    torch.manual_seed(0)
    settings = config(None)
    settings.update(resolution=SIDE, gradcam_enabled=True)
    settings["backbone_config"]["architecture"] = {
        "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 16, "hidden_act": "quick_gelu",
    }  # fmt: skip
    return assembled(settings)


def drawn(count: int) -> list[Forgery]:
    """Fakes are lighter on the right; five videos."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        real = rng.integers(60, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        fake = real.copy()
        fake[:, 16:] += 100
        found.append(Forgery(f"video{i % 5}", "lighter", Pair(real, fake, np.zeros((SIDE, SIDE), np.uint8))))
    return found


def test_a_head_tells_fakes_from_the_images_they_were_made_from(detector: LoadedDetector, tmp_path: Path) -> None:
    forgeries = drawn(30)
    fill_head(detector, tmp_path / "head.safetensors", forgeries)
    assert (detector.predict(pixels(one.pair.fake for one in forgeries))[1] > 0.5).all()
    assert (detector.predict(pixels(one.pair.real for one in forgeries))[1] < 0.5).all()
    again = fill_head(detector, tmp_path / "head.safetensors", ())  # it is there: nothing is trained
    assert torch.equal(again.model.head.weight, load_file(str(tmp_path / "head.safetensors"))["weight"])


def test_a_saved_detector_is_loaded_as_it_was(detector: LoadedDetector, tmp_path: Path) -> None:
    images = pixels(one.pair.fake for one in drawn(3))
    path = save_detector(detector, tmp_path, "tiny")
    loaded = load_detector(detector_settings(path, {}), torch.device("cpu"))
    assert torch.equal(loaded.predict(images)[0], detector.predict(images)[0])


def test_tuning_changes_the_norms_and_the_head_alone(
    detector: LoadedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "STEPS", 10)
    monkeypatch.setattr(tuning, "PAIRS", 2)
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    picture = np.random.default_rng(1).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    faces = [Face(((30, 25), (45, 25)), (37, 40))]
    photographs = [Photograph(name, picture[:, :: -1 if name == "b" else 1], faces, "drawn here") for name in "abc"]
    tuning.tune(detector, photographs, tmp_path / "tuned.safetensors")
    kept, after = load_file(str(tmp_path / "tuned.safetensors")), detector.model.state_dict()
    norms = (2 * BLOCKS + 2) * 2 * WIDTH  # two a block, one before and one after, each with weight and bias
    assert sum(value.numel() for value in kept.values()) == norms + 2 * WIDTH + 2
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # The last block's second norm acts on the CLS token, so every norm can change; nothing else may.
    assert changed == set(kept)
    assert all(torch.equal(after[name], value) for name, value in kept.items())


def test_a_case_is_kept_without_its_detector(detector: LoadedDetector, tmp_path: Path) -> None:
    images = pixels(one.pair.fake for one in drawn(3))
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    case = Case("tiny", detector, images, images, masks, ["a", "b", "c"], ["lighter"] * 3, 5, 4, 0.9)
    save_case(case, (images[:1], ["d"]), tmp_path / "cases" / "tiny.pt")
    kept = torch.load(tmp_path / "cases" / "tiny.pt")
    assert "detector" not in kept
    assert torch.equal(kept["fakes"], images)
    assert (kept["kinds"], kept["bank_videos"], kept["detected"]) == (["lighter"] * 3, ["d"], 4)
    assert torch.equal(kept["bank"], images[:1])
