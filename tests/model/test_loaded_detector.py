"""A detector with its weights on its device: one settings object, optional labels, images that cannot be explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.datasets import DataTree
from tests.helpers.detectors import PIXELS, tiny_detector
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.settings.config import DetectorSettings, detector_settings


@pytest.fixture
def settings(data_tree: DataTree) -> DetectorSettings:
    return detector_settings(data_tree.detector_yaml, {"gradcam_enabled": True, "gradcam_target": "real"})


@pytest.fixture
def loaded(settings: DetectorSettings) -> LoadedDetector:
    return load_detector(settings, torch.device("cpu"))


def pixels(count: int) -> torch.Tensor:
    size = (count, 3, PIXELS, PIXELS)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(5)).to(torch.uint8)


def test_the_settings_are_the_models_own(loaded: LoadedDetector, settings: DetectorSettings) -> None:
    assert loaded.gradcam is loaded.model.gradcam is settings.gradcam
    loaded.model.disable_gradcam()
    assert loaded.gradcam is loaded.model.gradcam and not loaded.gradcam.enabled


def test_labels_are_for_the_target_label_alone(loaded: LoadedDetector) -> None:
    """Against the detector itself, on pixels normalised here."""
    image = (pixels(3).double() / 255 - 0.5).float() / 0.5
    layer = "encoder.layers.3"
    assert loaded.explain(pixels(3)).target == ["real"] * 3  # as configured
    with pytest.raises(InputError, match="one label per image"):
        loaded.explain(pixels(3), target="label")
    got = loaded.explain(pixels(3), torch.tensor([1, 0, 2]), "label")
    expected = tiny_detector().explain({"image": image}, layers=[layer], target=["fake", "real", "fake"])
    assert got.target == ["fake", "real", "fake"]
    torch.testing.assert_close(got.layers[layer].raw, expected.layers[layer].raw, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("broken", [[], [1], [0, 2, 3], [0, 1, 2, 3]])
def test_images_without_finite_maps_are_left_out(loaded: LoadedDetector, broken: list[int]) -> None:
    target = ["fake", "real", "margin", "fake"]
    plain = loaded.explain(pixels(4), target=target)
    marks = pixels(4)[broken, :, 0, 0]

    def spoil(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """NaN in the tokens of the broken images, whatever images are with them."""
        corners = ((inputs[0][:, :, 0, 0] * 0.5 + 0.5) * 255).round().to(torch.uint8)
        hit = torch.tensor([any(torch.equal(corner, mark) for mark in marks) for corner in corners])
        return torch.where(hit.view(-1, 1, 1, 1), torch.full_like(output, float("nan")), output)

    handle = loaded.model.backbone.embeddings.patch_embedding.register_forward_hook(spoil)
    explanation, kept = loaded.explain_finite(pixels(4), target)
    handle.remove()
    assert kept == [i for i in range(4) if i not in broken]
    assert (explanation is None) == (not kept)
    if explanation is not None:
        assert explanation.target == [target[i] for i in kept]
        for i, position in enumerate(kept):
            torch.testing.assert_close(
                explanation.layers["encoder.layers.3"].raw[i],
                plain.layers["encoder.layers.3"].raw[position],
                rtol=1e-4,
                atol=1e-7,
            )


def test_a_layer_that_cannot_be_explained_shows_before_any_image(data_tree: DataTree) -> None:
    flags = {"gradcam_enabled": True, "gradcam_layers": ["encoder.layers.3.mlp"]}
    with pytest.raises(InputError, match="CLS token"):
        load_detector(detector_settings(data_tree.detector_yaml, flags), torch.device("cpu")).dry_run()


def test_engine_errors_name_a_setting_and_no_flag(data_tree: DataTree, tmp_path: Path) -> None:
    settings = detector_settings(data_tree.detector_yaml, {"weights_path": ""})
    for setting, call in (
        ("weights", lambda: load_detector(settings, torch.device("cpu"))),
        ("device", lambda: find_device("gpu")),
        ("layers", lambda: tiny_detector().explain({"image": torch.zeros(1, 3, 64, 64)}, layers=["encoder.layers.9"])),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.setting == setting and "--" not in str(caught.value)
