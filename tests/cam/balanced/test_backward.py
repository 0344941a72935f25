"""The balanced backward pass: against a tower in float64 whose constants are constants, and what it leaves alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, images, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from tests.helpers.paths import ROOT
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.method_references import TOKEN_REFERENCES
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.settings.config import detector_settings

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]
HEADS = ARCHITECTURE["num_attention_heads"]
SIDE = (PIXELS // PATCH, PIXELS // PATCH)
MARGIN = [-1.0, 1.0]
DEMO = ROOT / "config" / "detector" / "clip_gradcam_demo.yaml"


def balanced_reference(model: Any, image: Tensor) -> reference.ReferenceTower:
    return reference.reference_gradients(
        model.state_dict(), image, BLOCKS, HEADS, PATCH, [MARGIN] * len(image), reference.BalancedTower
    )


@pytest.mark.parametrize(("kernel", "tolerance"), [("sdpa", 1e-10), ("eager", 1e-6)])  # eager: a float32 softmax
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
def test_maps_equal_those_of_a_tower_with_constant_norms_and_attention(
    kernel: str, tolerance: float, method: str, site: str
) -> None:
    model, image = tiny_detector().double(), images(3).double()
    model.backbone.config._attn_implementation = kernel
    tower = balanced_reference(model, image)
    found = model.explain({"image": image}, NAMES, method, "margin", site, backward="balanced")
    assert found.backward == "balanced"
    for name in NAMES:
        expected = reference.maps_of(tower, name, site, TOKEN_REFERENCES[method], SIDE)
        np.testing.assert_allclose(found.layers[name].raw, expected, rtol=0, atol=tolerance * expected.max())
    plain = model.explain({"image": image}, NAMES, method, "margin", site)
    assert plain.backward == "plain"
    assert not any(torch.allclose(plain.layers[name].raw, found.layers[name].raw, rtol=0.1) for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_those_of_a_plain_pass_to_the_last_bit(dtype: torch.dtype) -> None:
    model, image = tiny_detector().to(dtype), images(3).to(dtype)
    with torch.no_grad():
        plain = model({"image": image})
    found = model.explain({"image": image}, NAMES, backward="balanced").prediction
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    model, image = tiny_detector().double(), images(4).double()
    how: Any = {"method": "hirescam", "target": "margin", "site": "residual", "backward": "balanced"}
    together = model.explain({"image": image}, [*NAMES, "sum"], **how).layers
    for i in range(4):
        alone = model.explain({"image": image[i : i + 1]}, [*NAMES, "sum"], **how).layers
        for name, maps in alone.items():
            torch.testing.assert_close(maps.signed[0], together[name].signed[i], rtol=1e-10, atol=1e-13)


def test_no_more_is_kept_for_it_than_for_a_plain_pass() -> None:
    model, image = tiny_detector(), images(2)
    how: Any = {"layers": NAMES[:1], "methods": ["hirescam"], "sites": ["residual"], "target": "margin"}
    plain, balanced = (
        saved_bytes(model, partial(model.capture, {"image": image}, backward=backward, **how))
        for backward in ("plain", "balanced")
    )
    assert balanced < 1.02 * plain


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = tiny_detector().train()
    before = state_of(model)
    if fails:
        with pytest.raises(LayerError, match="exactly 0"):
            model.explain({"image": images(1)}, ["encoder.layers.3.mlp"], backward="balanced")
    else:
        model.explain({"image": images(1)}, NAMES, backward="balanced")
    assert_same_state(before, state_of(model))
    x = torch.randn(2, 8, requires_grad=True)
    F.layer_norm(x, (8,)).square().sum().backward()  # σ counts again: a scale of x changes nothing
    assert x.grad is not None and float((x.grad * x).sum().detach().abs()) < 1e-3


# ------------------------------------------------------------------------------------------------------ norms by hand


class Heads(nn.Module):
    """A CLIP tower under heads whose scale is no evidence."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        detector = tiny_detector()
        self.tower, self.decide, self.head = detector.backbone, detector.head, head

    def forward(self, image: Tensor) -> Tensor:
        return self.decide(self.head(self.tower(image)["pooler_output"]))


class HandmadeRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


HEAD_NORMS: dict[str, Any] = {
    "F.normalize": F.normalize,
    "Tensor.norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "torch.norm": lambda x: x / torch.norm(x, dim=-1, keepdim=True),
    "linalg.norm": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    "vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "RMS norm": HandmadeRMSNorm(),
    "LayerNorm": nn.LayerNorm(32),
    "F.layer_norm": lambda x: F.layer_norm(x, normalized_shape=(32,)),
}


@pytest.mark.parametrize("name", HEAD_NORMS)
def test_the_scale_of_a_norm_before_the_head_is_a_constant(name: str) -> None:
    """Maps are those of a head that multiplies by the very factor that the norm had, image by image."""
    head = HEAD_NORMS[name]
    model, image = Heads(head).double(), images(3).double()
    with torch.no_grad():
        x = model.tower(image)["pooler_output"]
        centre = x.mean(-1, keepdim=True) if "ayer" in name else torch.zeros_like(x)
        factor = head(x) / (x - centre)
    frozen = Heads(lambda x: (x - x.mean(-1, keepdim=True) if "ayer" in name else x) * factor).double()
    how: Any = {"layers": NAMES, "method": "hirescam", "site": "residual", "backward": "balanced"}
    found, expected = explain(model, image, **how), explain(frozen, image, **how)
    with torch.no_grad():
        assert torch.equal(found.logits, model(image))
    for layer in NAMES:
        scale = float(expected.layers[layer].signed.abs().max())
        torch.testing.assert_close(found.layers[layer].signed, expected.layers[layer].signed, rtol=0, atol=1e-9 * scale)


# ----------------------------------------------------------------------------------------------------------- refusals


class OwnAttention(nn.Module):
    """A pre-norm block with an attention written by hand, whose parts have names that no family knows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(32), nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm1(x)).chunk(3, dim=2)
        return x + (q @ k.transpose(1, 2)).softmax(dim=2) @ v


class Blocks(nn.Module):
    """Pre-norm blocks whose queries and keys no family knows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 16, stride=16)
        self.encoder = nn.Sequential(OwnAttention(), OwnAttention())
        self.head = nn.Linear(32, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(image).flatten(2).transpose(1, 2)).mean(dim=1))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Blocks(), r"queries and keys constant, and those of Blocks's block 'encoder\.0' are not known.*plain"),
        (Convolutions(), "the score Convolutions has neither attention nor such gates.*'plain'"),
    ],
)
def test_a_tower_whose_attention_is_not_known_is_refused(model: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=says):
        explain(model, images(1), backward="balanced", target="fake")
    assert explain(model, images(1), backward="plain", target="fake").backward == "plain"


def test_an_unknown_backward_pass_is_refused() -> None:
    with pytest.raises(InputError, match="backward 'balance' is unknown; did you mean 'balanced'"):
        explain(tiny_detector(), images(1), forward=lambda x: x, backward="balance", target="fake")


# ------------------------------------------------------------------------------------------------------- randomisation


def test_maps_of_a_trained_tower_change_with_its_weights() -> None:
    """Adebayo et al. 2018: the embedded detector's maps, and those after every weight became noise of its own spread."""
    settings = detector_settings(DEMO, {"gradcam_enabled": True})
    model: Any = load_detector(settings, torch.device("cpu")).model
    image = images(6, pixels=settings.resolution)
    how: Any = {"layers": ["sum", "encoder.layers.3"], "method": "hirescam", "target": "margin", "site": "residual"}
    before = model.explain({"image": image}, backward="balanced", **how).layers
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.mean() + (parameter.std() if parameter.numel() > 1 else 0) * noise)
    after = model.explain({"image": image}, backward="balanced", **how).layers
    for name, maps in before.items():
        pairs = zip(maps.signed.flatten(1).numpy(), after[name].signed.flatten(1).numpy(), strict=True)
        likeness = [float(spearmanr(one, other).statistic) for one, other in pairs]
        assert np.mean(likeness) < 0.3, (name, likeness)
