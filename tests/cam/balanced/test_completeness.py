"""Shares and biases add up to the score: against a float64 tower whose biases are leaves, on several heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, images, tiny_detector
from tests.helpers.references import reference_clip as reference
from utils.gradcam import explain
from utils.gradcam_kit.engine.completeness import Completeness

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]
HEADS = ARCHITECTURE["num_attention_heads"]
HOW: dict[str, Any] = {"method": "hirescam", "site": "residual", "backward": "balanced"}


@pytest.mark.parametrize("target", ["fake", "margin"])
def test_shares_and_biases_equal_the_score_of_a_linear_tower(target: str) -> None:
    """One image at a time, the gradient of every bias times itself: nothing here is the library's."""
    model, image = tiny_detector().double(), images(3).double()
    layers = [NAMES[3], NAMES[0], "sum", NAMES[2], NAMES[1]]
    found = model.explain({"image": image}, layers, target=target, **HOW)
    assert list(found.completeness) == layers
    for i in range(3):
        state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        biases = {key: value.requires_grad_() for key, value in state.items() if key.endswith(".bias")}
        tower = reference.LinearTower(dict(state), BLOCKS, HEADS, PATCH)
        tower.state.update(biases)  # leaves: the constructor detaches
        logits = tower.logits(image[i : i + 1])[0]
        score = logits[1] - logits[0] if target == "margin" else logits[1]
        score.backward()
        worst = torch.zeros(2, dtype=torch.float64)
        for number, name in enumerate(NAMES):
            x = tower.inputs[name]
            assert x.grad is not None
            shares = float((x.grad * x).detach().sum())
            later = [
                float((bias.grad * bias).detach().sum())
                for key, bias in biases.items()
                if bias.grad is not None and runs_after(key, number)
            ]
            assert abs(shares + sum(later) - score.item()) < 1e-9 * abs(score.item())  # the identity itself
            tested = found.completeness[name]
            assert float(tested.error[i]) < 1e-9
            expected = abs(sum(later)) / (abs(shares) + abs(sum(later)))
            assert abs(float(tested.bias_share[i]) - expected) < 1e-9
            worst = torch.maximum(worst, torch.stack([tested.error[i], tested.bias_share[i]]))
        assert torch.equal(torch.stack([values[i] for values in found.completeness["sum"]]), worst)


class NormedMaps(nn.Module):
    """A small CNN with a gate of squeeze-and-excitation, and a norm of maps (B, 6, h, w)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.weigh, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), norm, nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.conv(image))
        gated = x * self.weigh(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        logits: Tensor = self.head(gated.tanh().mean(dim=(2, 3)))
        return logits


class LayerNorm2d(nn.LayerNorm):
    """Of maps (B, C, h, w), as in timm and torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), LayerNorm2d(6), nn.BatchNorm2d(6)]
)
def test_norms_of_maps_have_one_bias_a_channel(norm: nn.Module) -> None:
    """The map is that of the same network without biases to be tested: autograd's, with the gate constant."""
    torch.manual_seed(0)
    model, image = NormedMaps(norm).double().eval(), torch.randn(2, 3, 12, 9, dtype=torch.float64)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter))
    found = explain(model, image, "norm", target="fake", **HOW)
    maps = norm(model.conv(image)).detach().requires_grad_()
    gate = model.weigh(maps.mean(dim=(2, 3), keepdim=True)).sigmoid().detach()
    (G,) = torch.autograd.grad(model.head((maps * gate).tanh().mean(dim=(2, 3)))[:, 1].sum(), [maps])
    torch.testing.assert_close(found.maps.signed, (G * maps).sum(dim=1).detach(), rtol=0, atol=1e-12)


def runs_after(bias: str, block: int) -> bool:
    """Whether a bias is added behind what that block reads."""
    if ".layers." in bias:
        return int(bias.split(".layers.")[1].split(".")[0]) >= block
    return "pre_layrnorm" not in bias and "embeddings" not in bias


class Headed(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        detector = tiny_detector()
        self.tower, self.head = detector.backbone, head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.tower(image)["pooler_output"])


class Normalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x, dim=-1))


class Gated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.sigmoid(x))


def with_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(32)
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.Linear(32, 2))


LINEAR: dict[str, Any] = {
    "one layer": lambda: nn.Linear(32, 2),
    "two layers": lambda: nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 2)),
    "L2 norm": lambda: Normalised(32, 2),
    "LayerNorm": lambda: nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 2)),
    "batch norm": with_statistics,
}
NOT_LINEAR: dict[str, Any] = {
    "hidden layer": lambda: nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 2)),
    "gate": lambda: Gated(32, 2),
    "tanh": lambda: nn.Sequential(nn.Tanh(), nn.Linear(32, 2)),
}


@pytest.mark.parametrize("name", [*LINEAR, *NOT_LINEAR])
def test_a_head_that_is_not_linear_is_not_called_complete(name: str) -> None:
    torch.manual_seed(3)
    model, image = Headed({**LINEAR, **NOT_LINEAR}[name]()).eval().double(), images(3).double()
    found = explain(model, image, NAMES, target="fake", **HOW)
    with torch.no_grad():
        assert torch.equal(found.logits, model(image))
    errors = torch.stack([tested.error for tested in found.completeness.values()])
    assert (errors < 1e-9).all() if name in LINEAR else (errors > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_other_precisions(dtype: torch.dtype) -> None:
    model, image = tiny_detector().to(dtype), images(2).to(dtype)
    found = model.explain({"image": image}, NAMES, target="margin", **HOW)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert all(float(tested.error.max()) < tolerance for tested in found.completeness.values())
    for method, site in (("legrad", "residual"), ("gradcam", "layer_norm1")):  # it is of the block, not of the map
        other = model.explain({"image": image}, NAMES, method, "margin", site, "balanced").completeness
        for name, tested in found.completeness.items():
            torch.testing.assert_close(other[name].bias_share, tested.bias_share, rtol=0, atol=tolerance)


def test_it_is_of_blocks_and_of_balanced_passes_alone() -> None:
    model, image = tiny_detector(), images(2)
    assert not model.explain({"image": image}, NAMES, "hirescam", site="residual").completeness
    layers = ["encoder.layers.1.mlp", NAMES[2], "encoder.layers.0.self_attn.v_proj"]
    assert list(model.explain({"image": image}, layers, **HOW).completeness) == NAMES[2:3]
    both = model.explain({"image": image}, NAMES[2:3], target="both", **HOW).completeness
    assert list(both) == [f"{NAMES[2]}_fake", f"{NAMES[2]}_real"]


def test_by_hand() -> None:
    """score = shares + biases but for what is missing; as a share of the largest of the three."""
    one = Completeness.of(
        torch.tensor([3.0, 3.0, -8.0, 0.0]), torch.tensor([1.0, 1.0, 8.0, 0.0]), torch.tensor([4.0, 2.0, 0.0, 0.0])
    )
    assert one.error.tolist() == [0, 2 / 3, 0, 0]
    assert one.bias_share.tolist() == [0.25, 0.25, 0.5, 0]
