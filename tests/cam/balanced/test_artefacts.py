"""Maps that are nothing but what rounding and LayerNorm's ε leave of sums that are zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.detectors import ARCHITECTURE, BLOCKS, images, tiny_detector
from utils.gradcam_kit.drawing.overlays import layer_images
from utils.gradcam_kit.engine.maps import LayerMaps, fused
from utils.gradcam_kit.engine.methods import hires_cam, leftover

LAST = f"encoder.layers.{BLOCKS - 1}"
SIZE = (8, 8)


def behind_a_norm(x: Tensor, h: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Tokens (1, C, 2, 2) read through a LayerNorm alone, and the gradient of Σ h · LayerNorm(x) there."""
    x = x.requires_grad_()
    y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=epsilon).permute(0, 3, 1, 2)
    (gradient,) = torch.autograd.grad((h * y).sum(), x)
    return x.detach(), gradient


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_behind_a_layer_norm_the_sum_is_what_epsilon_leaves(epsilon: float, dtype: torch.dtype) -> None:
    """By the formula ε / (σ² + ε) Σ_c h_c y_c, computed here; it stays below the bound, a true map far above."""
    generator = torch.Generator().manual_seed(5)
    x, h = (torch.randn(1, 64, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    A, G = (one.to(dtype) for one in behind_a_norm(x, h, epsilon))
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + epsilon).sqrt()
    expected = epsilon / (x.var(1, unbiased=False) + epsilon) * (h * y).sum(1)
    signed, bound = hires_cam(A, G), leftover(A, G, epsilon)
    if dtype == torch.float64:
        torch.testing.assert_close(signed, expected.detach(), rtol=1e-3, atol=1e-13)
    assert (signed.abs() <= bound).all()
    true = hires_cam(A, h.to(dtype))  # the gradient of Σ h · x, of the same size
    assert (true.abs() > 20 * leftover(A, h.to(dtype), epsilon)).any()
    maps = LayerMaps.of(signed, signed.relu(), SIZE, bound)
    assert maps.artefact.all() and maps.empty.all() and not maps.normalised.any() and maps.signed.any()


def test_by_hand_one_patch_above_the_bound_is_enough() -> None:
    signed = torch.tensor([[[2e-6, -9e-6]], [[2e-6, -2e-5]], [[0.0, 0.0]], [[2e-6, 3e-5]]])
    maps = LayerMaps.of(signed, signed.relu(), SIZE, torch.full((4, 1, 2), 1e-5))
    assert maps.artefact.tolist() == [True, False, False, False]
    assert maps.empty.tolist() == [True, False, True, False]
    together = fused([maps, LayerMaps.of(signed * 0 + torch.tensor([0.0, 1.0]), signed * 0 + 1, SIZE)], SIZE)
    assert torch.equal(together.signed[0], torch.tensor([[0.0, 0.5]])) and not together.artefact.any()
    drawn = [layers[0] for layers in layer_images(torch.zeros(4, 3, 8, 8).byte(), {"a": maps}, "jet", signed=True)]
    assert [one.artefact for one in drawn] == [True, False, False, False]
    assert [one.drawn_empty for one in drawn] == [True, False, True, False]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_in_a_tower_it_is_the_last_block_of_a_plain_pass_alone(epsilon: float, dtype: torch.dtype) -> None:
    architecture = {**ARCHITECTURE, "layer_norm_eps": epsilon}
    model = tiny_detector(backbone_config={"architecture": architecture}).to(dtype)
    names = [f"encoder.layers.{i}" for i in range(BLOCKS)]
    for backward in ("plain", "balanced"):
        for site in ("residual", "layer_norm1"):
            for method in ("hirescam", "gradcam"):
                found = model.explain({"image": images(4).to(dtype)}, [*names, "sum"], method, "fake", site, backward)
                for name, maps in found.layers.items():
                    expected = (name, backward, site, method) == (LAST, "plain", "residual", "hirescam")
                    assert maps.artefact.tolist() == [expected] * 4, (name, backward, site, method)


def test_rounding_alone_is_an_artefact_in_every_tower() -> None:
    """Where ε leaves nothing, only rounding is left, and more of it in some towers than in others."""
    architecture = {**ARCHITECTURE, "layer_norm_eps": 1e-12}
    for seed in range(40):
        model = tiny_detector(seed=seed, backbone_config={"architecture": architecture})
        maps = model.explain({"image": images(8, seed)}, [LAST], "hirescam", "fake", "residual", "plain").layers[LAST]
        assert maps.signed.any() and maps.artefact.all(), seed
