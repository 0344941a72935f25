"""Balanced, in a convolutional network: the gates of squeeze-and-excitation are constants, however they are written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from utils.gradcam import explain
from utils.gradcam_kit.engine.layers import LayerError

WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gate * x": lambda x, gate: gate * x,
    "x * gate": lambda x, gate: x * gate,
    "expanded": lambda x, gate: x * gate.expand_as(x),
    "torch.mul": torch.mul,
}


class Gated(nn.Module):
    """Convolutions with a gate between them, which `constant` detaches: the reference's way."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.weigh, self.last, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 2)
        self.written, self.constant = written, False

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(self.first(image).tanh()).tanh()
        gate = self.weigh(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        x = WRITTEN[self.written](x, gate.detach() if self.constant else gate)
        return self.head(self.last(x).tanh().mean(dim=(2, 3)))


@pytest.mark.parametrize("written", WRITTEN)
def test_maps_are_those_of_a_network_with_constant_gates(written: str) -> None:
    torch.manual_seed(0)
    model, image = Gated(written).double().eval(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    reference = copy.deepcopy(model)
    reference.constant = True
    kept: list[Tensor] = []
    reference.second.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = reference(image)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept)
    expected = (gradient * kept[0]).sum(dim=1)
    asked: Any = {"layers": ["second"], "method": "hirescam", "target": "fake"}
    found = explain(model, image, backward="balanced", **asked)
    plain = explain(model, image, backward="plain", **asked)
    torch.testing.assert_close(found.layers["second"].signed, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.logits, model(image)) and torch.equal(found.logits, plain.logits)
    change = (found.layers["second"].signed - plain.layers["second"].signed).abs().max()
    assert change > 0.01 * expected.abs().max()


def test_behind_all_gates_it_is_refused() -> None:
    model, image = Gated("x * gate").eval(), torch.randn(1, 3, 16, 16)
    with pytest.raises(LayerError, match="between the layers and the score Gated has neither"):
        explain(model, image, layers=["last"], backward="balanced", target="fake")
    assert explain(model, image, layers=["last"], backward="plain", target="fake").layers
