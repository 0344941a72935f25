"""Maps made of others: one pass for many, fused layers, both classes, signed maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.detectors import BLOCKS, images, tiny_detector
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.drawing.overlays import signed_overlay
from utils.gradcam_kit.engine.heads import Target
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.engine.recipe import explained_names

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]


def test_one_pass_gives_what_single_explanations_give() -> None:
    model = tiny_detector()
    image = images(3)
    forwards = []
    handle = model.backbone.register_forward_hook(lambda *_: forwards.append(1))
    methods, sites = ["gradcam", "layercam", "legrad", "rollout"], ["layer_norm1", "residual"]
    captured = model.capture(
        {"image": image}, layers=NAMES, methods=methods, sites=sites, target="fake", backward="plain"
    )
    handle.remove()
    assert len(forwards) == 1
    for method in methods:
        for site in sites:
            alone = model.explain({"image": image}, layers=NAMES, method=method, site=site, target="fake").layers
            for name, maps in captured.maps(method, site).items():
                torch.testing.assert_close(maps.raw, alone[name].raw, rtol=1e-4, atol=1e-7)


def test_fused_is_the_mean_of_the_normalised_maps() -> None:
    model = tiny_detector()
    layers = [NAMES[2], "fused", NAMES[1]]
    explanation = model.explain({"image": images(4)}, layers=layers, method="hirescam", site="residual")
    assert list(explanation.layers) == layers
    stretched = []
    for name in (NAMES[2], NAMES[1]):
        raw = explanation.layers[name].raw.numpy().astype(np.float64)
        low, high = raw.min((1, 2), keepdims=True), raw.max((1, 2), keepdims=True)
        stretched.append((raw - low) / np.where(high > low, high - low, 1))
    np.testing.assert_allclose(explanation.layers["fused"].raw, np.mean(stretched, axis=0), atol=1e-5)
    with pytest.raises(InputError, match="at least two"):
        model.explain({"image": images(1)}, layers=["fused", NAMES[0]])


@pytest.mark.parametrize("target", ["fake", "margin", "both", ["fake", "real"], ["both", "both"]])
def test_names_of_the_maps_are_known_beforehand(target: Target) -> None:
    layers = [NAMES[2], "fused", NAMES[0], NAMES[2]]
    explanation = tiny_detector().explain({"image": images(2)}, layers=layers, target=target)
    assert explained_names(layers, target) == list(explanation.layers)


def test_both_classes_side_by_side() -> None:
    model = tiny_detector()
    image = images(3)
    both = model.explain({"image": image}, layers=NAMES[2:3], target="both")
    assert both.target == ["both"] * 3 and list(both.layers) == ["encoder.layers.2_fake", "encoder.layers.2_real"]
    for one in ("fake", "real"):
        alone = model.explain({"image": image}, layers=NAMES[2:3], target=one).layers[NAMES[2]]
        assert torch.equal(both.layers[f"encoder.layers.2_{one}"].raw, alone.raw)
    with pytest.raises(InputError, match="for the whole batch"):
        model.explain({"image": image}, target=["both", "fake", "both"])


def test_signed_maps_show_the_margin_on_both_sides() -> None:
    model = tiny_detector(gradcam_signed=True)
    assert model.gradcam.target == "margin"
    maps = model.explain({"image": images(3)}, layers=NAMES[2:3], method="hirescam").layers[NAMES[2]]
    assert (maps.signed < 0).any() and torch.equal(maps.raw, maps.signed.relu())
    with pytest.raises(InputError, match="together, which gradcam_target 'fake' cannot"):
        tiny_detector(gradcam_signed=True, gradcam_target="fake")


def test_signed_overlay_is_red_above_zero_blue_below_and_the_image_at_zero() -> None:
    grey = torch.full((1, 3, 1, 3), 100, dtype=torch.uint8)
    drawn = signed_overlay(grey, torch.tensor([[[1.0, 0.0, -1.0]]]))[0, 0].tolist()
    # By hand: 100 + 0.85 (ink - 100), inks (214, 0, 0) and (0, 76, 230).
    assert drawn == [[197, 15, 15], [100, 100, 100], [15, 80, 210]]


@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_sum_is_the_signed_maps_of_all_blocks_then_relu(method: str, backward: str) -> None:
    model, image = tiny_detector().double(), images(3).double()
    how: Any = {"method": method, "target": "fake", "site": "residual", "backward": backward}
    single = model.explain({"image": image}, NAMES, **how).layers
    expected = sum(maps.signed for maps in single.values())
    assert isinstance(expected, torch.Tensor)
    alone = model.explain({"image": image}, ["sum"], **how).layers
    assert list(alone) == ["sum"]
    beside = model.explain({"image": image}, [NAMES[1], "sum", NAMES[2], "fused"], **how).layers
    assert list(beside) == [NAMES[1], "sum", NAMES[2], "fused"]
    for maps in (alone["sum"], beside["sum"]):
        torch.testing.assert_close(maps.signed, expected, rtol=0, atol=1e-13)
        assert torch.equal(maps.raw, maps.signed.relu()) and not maps.empty.any()
    fused = model.explain({"image": image}, [NAMES[1], NAMES[2], "fused"], **how).layers["fused"]
    assert torch.equal(beside["fused"].raw, fused.raw)


def test_the_sum_of_legrad_is_that_of_its_raw_maps() -> None:
    """Each is a mean of ReLUs already, as the paper's, which averages them over layers."""
    model, image = tiny_detector().double(), images(2).double()
    single = model.explain({"image": image}, NAMES, "legrad").layers.values()
    found = model.explain({"image": image}, ["sum"], "legrad").layers["sum"]
    torch.testing.assert_close(found.raw, torch.stack([maps.raw for maps in single]).sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.signed, torch.stack([maps.signed for maps in single]).sum(0), rtol=0, atol=1e-14)


def test_rollout_has_no_sum() -> None:
    with pytest.raises(LayerError, match="'rollout' has no maps to add for layer 'sum'"):
        tiny_detector().explain({"image": images(1)}, ["sum"], "rollout")


def test_a_convolutional_network_has_no_sum() -> None:
    class Net(nn.Sequential):
        pass

    net = Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(LayerError, match="'sum' adds the maps of a transformer's blocks.*Net has no such blocks"):
        explain(net, images(1), ["sum"], target="fake")


def test_numbers_name_blocks_and_one_layer_or_a_tensor_alone_will_do() -> None:
    model, image = tiny_detector(), images(2)
    expected = model.explain({"image": image}, [f"encoder.layers.{BLOCKS - 1}"]).layers
    (wanted,) = expected.values()
    for layers in ("-1", -1, [BLOCKS - 1], f"encoder.layers.{BLOCKS - 1}"):
        (found,) = model.explain(image, layers).layers.values()
        assert torch.equal(found.signed, wanted.signed)
    with pytest.raises(LayerError, match="layer '9' is not in the detector's tower"):
        model.explain(image, 9)
