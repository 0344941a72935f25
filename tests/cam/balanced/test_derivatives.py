"""Derivatives that are got from less, against autograd's of the formula written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.detectors import images, tiny_detector
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam_kit.engine import tokens
from utils.gradcam_kit.engine.backward import balanced
from utils.gradcam_kit.engine.backward.derivatives import AttentionOfConstantWeights
from utils.gradcam_kit.engine.hooks import QuickGELU, is_quick_gelu
from utils.gradcam_kit.engine.towers.attention import Held

LAYERS = ["encoder.layers.0", "encoder.layers.2"]


class QuickGELUOfAnotherSlope(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.5 * x)


class OurQuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def test_quick_gelu_has_its_value_and_its_derivative() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(4).requires_grad_()
    gradient = torch.randn(5, 7, dtype=torch.float64)
    activate = OurQuickGELU()
    value = QuickGELU.apply(x, activate)
    assert torch.equal(value, activate(x))
    (found,) = torch.autograd.grad(value, x, gradient)
    (expected,) = torch.autograd.grad(activate(x), x, gradient)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: QuickGELU.apply(x, activate), x)


def test_it_is_known_by_its_values_too() -> None:
    assert is_quick_gelu(OurQuickGELU())
    assert not is_quick_gelu(QuickGELUOfAnotherSlope())
    assert not is_quick_gelu(nn.GELU())


def test_of_quick_gelu_one_tensor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower's own activation is CLIP's; of its MLP two tensors of the full width were kept."""
    model, image = tiny_detector(), images(8)
    names = {type(module).__name__ for module in model.modules() if is_quick_gelu(module)}
    assert len(names) == 1 and "forward" not in vars(model)

    def kept() -> int:
        return saved_bytes(model, lambda: model.explain({"image": image}, layers=LAYERS))

    found = kept()
    assert not any("forward" in vars(module) for module in model.modules())  # put back
    monkeypatch.setattr(tokens, "quick_gelu", lambda module, activate, x: activate(x))
    assert found < 0.85 * kept()


def test_autocast_does_not_reach_the_derivative() -> None:
    """A detector's own precision is around the backward pass, too."""
    q, k, v, g = (torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(i)) for i in range(4))
    v.requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (q @ k.mT * 0.3).softmax(dim=-1) @ v

    def gradient() -> Tensor:
        return torch.autograd.grad(AttentionOfConstantWeights.apply(q, k, v, 0.3, attend), v, g)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("queries", [1, 9])
def test_attention_of_constant_weights(queries: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v, g = (
        torch.randn(2, 3, count, 8, dtype=torch.float64, generator=generator) for count in (queries, 9, 9, queries)
    )
    v.requires_grad_()
    value = AttentionOfConstantWeights.apply(q, k, v, 0.3, lambda q, k, v: (q @ k.mT * 0.3).softmax(dim=-1) @ v)
    (found,) = torch.autograd.grad(value, v, g)
    weights = torch.exp(0.3 * torch.einsum("bhqd,bhkd->bhqk", q, k))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(found, torch.einsum("bhqk,bhqd->bhkd", weights, g), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "taken"),
    [({}, True), ({"scale": 0.2}, True), ({"is_causal": True}, False), ({"attn_mask": torch.zeros(9, 9)}, False)],
)
def test_attention_is_taken_where_it_is_plain(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], taken: bool
) -> None:
    """Against PyTorch's own gradient, to float32's last digits; the value is its own to the last bit."""
    q, k, v = (torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    v.requires_grad_()
    calls = []
    apply = AttentionOfConstantWeights.apply

    def counted(*given: Any) -> Tensor:
        calls.append(given)
        return apply(*given)

    monkeypatch.setattr(AttentionOfConstantWeights, "apply", counted)
    with balanced._Constants(Held()):
        value = F.scaled_dot_product_attention(q, k, v, **options)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.equal(value, expected) and bool(calls) == taken
    gradient = torch.randn(value.shape)
    (found,), (own,) = (torch.autograd.grad(one, v, gradient) for one in (value, expected))
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)


def test_what_is_broadcast_is_pytorchs_own() -> None:
    """One image's queries against the keys of two."""
    q, k, v = (torch.randn(n, 3, 9, 8, generator=torch.Generator().manual_seed(i)) for i, n in enumerate((1, 2, 2)))
    v.requires_grad_()
    with balanced._Constants(Held()):
        value = F.scaled_dot_product_attention(q, k, v)
    expected = F.scaled_dot_product_attention(q.expand(2, -1, -1, -1), k, v)
    (found,), (own,) = (torch.autograd.grad(one.square().sum(), v) for one in (value, expected))
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
