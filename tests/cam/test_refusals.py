"""Never a blank map without a word: what is refused, what is flagged, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import BLOCKS, images, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.engine.maps import NonFiniteMapError


def test_last_block_is_not_blank_and_its_output_is_refused(detector: CLIPDetectorWithGradCAM) -> None:
    last = f"encoder.layers.{BLOCKS - 1}"
    maps = detector.explain({"image": images(5)}, layers=[last], target="margin").layers[last]
    assert not maps.empty.all() and maps.signed.abs().amax() > 0
    for name in (f"{last}.mlp", f"{last}.mlp.fc2", f"{last}.self_attn", f"{last}.layer_norm2"):
        with pytest.raises(LayerError, match="CLS token") as caught:
            detector.explain({"image": images(5)}, layers=[name])
        assert name in str(caught.value) and "name the block itself" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("encoder.layers.9", "did you mean 'encoder.layers.3'"),
        (str(BLOCKS), "encoder.layers.0 ... encoder.layers.3"),
        (str(-BLOCKS - 1), "encoder.layers.0 ... encoder.layers.3"),
        ("encoder.layer.1", "encoder.layers.0 ... encoder.layers.3"),
        ("head", "is not in the detector's tower"),
        ("", "is not in the detector's tower"),
        ("post_layernorm", "has no patch tokens"),
        ("encoder", "passes on BaseModelOutput"),
    ],
)
def test_unusable_layer_names_are_explained(detector: CLIPDetectorWithGradCAM, name: str, says: str) -> None:
    with pytest.raises(LayerError) as caught:
        detector.explain({"image": images(1)}, layers=["encoder.layers.1", name])
    assert repr(name) in str(caught.value) and says in str(caught.value)


def test_a_layer_that_the_score_does_not_depend_on_is_refused(detector: CLIPDetectorWithGradCAM) -> None:
    with torch.no_grad():
        detector.head.weight.zero_()
    with pytest.raises(LayerError, match="exactly 0"):
        detector.explain({"image": images(2)}, layers=["encoder.layers.1"])


def test_nan_names_the_layer_and_the_images(detector: CLIPDetectorWithGradCAM) -> None:
    image = images(3)
    broken = torch.zeros(3, 1, 1)
    broken[1] = float("nan")
    detector.backbone.encoder.layers[2].layer_norm2.register_forward_hook(lambda m, i, output: output + broken)
    with pytest.raises(NonFiniteMapError, match=r"encoder.layers.1.*\[1\]") as caught:
        detector.explain({"image": image}, layers=["encoder.layers.1"], target="fake")
    assert caught.value.samples == (1,)


def test_a_map_without_positive_evidence_is_zero_and_flagged() -> None:
    """The map of `fake` and of `real` are opposites where the head is, so no patch can speak for both."""
    model = tiny_detector()
    with torch.no_grad():
        model.head.weight[0] = -model.head.weight[1]
    name, data = "encoder.layers.1", {"image": images(8)}
    both = [model.explain(data, layers=[name], target=target).layers[name] for target in ("fake", "real")]
    torch.testing.assert_close(both[0].signed, -both[1].signed)
    with torch.no_grad():  # the same token everywhere: evidence of one sign, without any range
        model.backbone.encoder.layers[1].layer_norm1.weight.zero_()
    for target in ("fake", "real"):
        maps = model.explain(data, layers=[name], target=target).layers[name]
        assert maps.signed.abs().amax() > 0
        assert maps.empty.all()
        assert torch.equal(maps.normalised, torch.zeros_like(maps.normalised))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "is missing"),
        ({"image": torch.zeros(1, 4, 3, 64, 64)}, "flatten"),
        ({"image": torch.zeros(3, 64, 64)}, "expected"),
        ({"image": torch.zeros(1, 1, 64, 64)}, "expected"),
        ({"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "normalised"),
        ({"image": torch.zeros(0, 3, 64, 64)}, "empty batch"),
        ({"image": torch.ones(2, 3, 64, 64).to_sparse()}, "torch.sparse_coo tensor: give a dense one"),
        ({"image": torch.ones(2, 3, 64, 64).to_mkldnn()}, "torch._mkldnn tensor: give a dense one"),
        ({"image": torch.nested.nested_tensor([torch.ones(3, 64, 64)] * 2, layout=torch.jagged)}, "nested tensor"),
        ({"image": torch.full((2, 3, 64, 64), float("nan"))}, r"image(s) [0, 1]"),
    ],
)
def test_unusable_images_are_refused(detector: CLIPDetectorWithGradCAM, data: Any, says: str) -> None:
    before = state_of(detector)
    with pytest.raises(InputError) as caught:
        detector.generate_gradcam(data)
    assert says in str(caught.value)
    assert_same_state(before, state_of(detector))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": ["fake"]}, "1 entries for a batch of 2"),
        ({"target": "fakes"}, "did you mean 'fake'"),
        ({"target": [0, 7]}, "target 7 is unknown"),
        ({"target": "label"}, "data_dict['label']"),
        ({"method": "grad-cam"}, "did you mean 'gradcam'"),
    ],
)
def test_unusable_arguments_are_refused(detector: CLIPDetectorWithGradCAM, arguments: Any, says: str) -> None:
    before = state_of(detector)
    with pytest.raises(InputError) as caught:
        detector.generate_gradcam({"image": images(2)}, **arguments)
    assert says in str(caught.value)
    assert_same_state(before, state_of(detector))
