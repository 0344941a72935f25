"""Layer `sum`: the signed maps of all blocks added, whatever else is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers.detectors import BLOCKS, images, tiny_detector
from utils.cam.layers import LayerError
from utils.gradcam import explain

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]


@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_the_signed_maps_of_all_blocks_added_then_relu(method: str, backward: str) -> None:
    model, image = tiny_detector().double(), images(3).double()
    how = {"method": method, "target": "fake", "site": "residual", "backward": backward}
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


def test_legrad_adds_its_raw_maps() -> None:
    """Each is a mean of ReLUs already, as the paper's, which averages them over layers."""
    model, image = tiny_detector().double(), images(2).double()
    single = model.explain({"image": image}, NAMES, "legrad").layers.values()
    found = model.explain({"image": image}, ["sum"], "legrad").layers["sum"]
    torch.testing.assert_close(found.raw, torch.stack([maps.raw for maps in single]).sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.signed, torch.stack([maps.signed for maps in single]).sum(0), rtol=0, atol=1e-14)


def test_rollout_has_nothing_to_add() -> None:
    with pytest.raises(LayerError, match="'rollout' has no maps to add for layer 'sum'"):
        tiny_detector().explain({"image": images(1)}, ["sum"], "rollout")


def test_a_convolutional_network_has_no_blocks_to_add() -> None:
    class Net(nn.Sequential):
        pass

    net = Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(LayerError, match="'sum' adds the maps of a transformer's blocks.*Net has no such blocks"):
        explain(net, images(1), ["sum"])
