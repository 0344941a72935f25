"""HiResCAM, LayerCAM, XGradCAM, LeGrad, rollout, fused and signed maps, against float64 formulas and autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers import reference_clip as reference
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, pictures, tiny_detector
from utils.cam.layers import LayerError
from utils.errors import InputError
from utils.results.overlays import signed_overlay

SIDE = PIXELS // PATCH
HEADS = ARCHITECTURE["num_attention_heads"]
NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]
MARGIN = [-1.0, 1.0]


def by_loop(method: str, A: np.ndarray, G: np.ndarray) -> np.ndarray:
    """The papers' sums, channel by channel, in float64; (C, h, w) each."""
    total = np.zeros(A.shape[1:])
    for a, g in zip(A, G):
        if method == "hirescam":
            total += g * a
        elif method == "layercam":
            total += np.maximum(g, 0) * a
        else:
            total += (g * a).sum() / a.sum() * a
    return np.maximum(total, 0)


@pytest.mark.parametrize("method", ["hirescam", "layercam", "xgradcam"])
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
def test_token_methods_equal_their_formulas(method: str, site: str) -> None:
    model = tiny_detector().double()
    image = pictures(3).double()
    tower = reference.reference_gradients(model.state_dict(), image, BLOCKS, HEADS, PATCH, [MARGIN] * 3)
    maps = model.explain({"image": image}, layers=NAMES, method=method, site=site, target="margin").layers
    for name in NAMES:
        tokens = tower.points[f"{name}.layer_norm1"] if site == "layer_norm1" else tower.inputs[name]
        assert tokens.grad is not None
        for i in range(3):
            A, G = (reference.grid_of(one[i], (SIDE, SIDE)) for one in (tokens, tokens.grad))
            expected = by_loop(method, A, G)
            np.testing.assert_allclose(maps[name].raw[i].numpy(), expected, rtol=0, atol=1e-9 * (expected.max() or 1))


def test_what_the_residual_streams_mean_over_channels_decides() -> None:
    """Nothing, since every reader begins with LayerNorm. HiResCAM and Grad-CAM agree; LayerCAM and Grad-CAM++ do not."""
    model, image, name = tiny_detector().double(), pictures(2).double(), NAMES[1]

    def maps(method: str) -> tuple[Tensor, Tensor]:
        explained = model.explain({"image": image}, layers=[name], method=method, site="residual", target="fake")
        return explained.logits, explained.layers[name].signed

    before = {method: maps(method) for method in ("gradcam", "hirescam", "layercam", "gradcam++")}
    lift = torch.linspace(0, 5, SIDE * SIDE + 1, dtype=torch.float64).view(1, -1, 1)  # of every channel of a token
    handle = model.backbone.encoder.layers[1].register_forward_pre_hook(
        lambda _, inputs: (inputs[0] + lift, *inputs[1:])
    )
    for method, (logits, signed) in before.items():
        lifted_logits, lifted = maps(method)
        torch.testing.assert_close(lifted_logits, logits, rtol=1e-9, atol=1e-9)
        same = torch.allclose(lifted, signed, rtol=0, atol=1e-9 * float(signed.abs().max()))
        assert same == (method in ("gradcam", "hirescam")), method
    handle.remove()


class AttendingTower(reference.ReferenceTower):
    """The reference tower with its attention probabilities kept, so that autograd gives their gradient."""

    def block(self, x: Tensor, i: int) -> Tensor:
        name = f"encoder.layers.{i}"
        y = self.norm(x, f"{name}.layer_norm1")
        q, k, v = (self.linear(y, f"{name}.self_attn.{one}_proj") for one in "qkv")
        b, t, c = q.shape
        q, k, v = (one.reshape(b, t, HEADS, c // HEADS).permute(0, 2, 1, 3) for one in (q, k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) / np.sqrt(c // HEADS), -1)
        weights = self.keep(f"{name}.probabilities", weights)
        mixed = (weights @ v).permute(0, 2, 1, 3).reshape(b, t, c)
        x = x + self.linear(mixed, f"{name}.self_attn.out_proj")
        hidden = self.linear(self.norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        return x + self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{name}.mlp.fc2")


def attended(model: CLIPDetectorWithGradCAM, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and attention probabilities of every block, with their gradients."""
    tower = AttendingTower(model.state_dict(), BLOCKS, HEADS, PATCH)
    logits = tower.logits(image.double())
    (logits @ torch.tensor(MARGIN, dtype=torch.float64)).sum().backward()
    return logits.detach(), [tower.points[f"{name}.probabilities"] for name in NAMES]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_legrad_equals_the_gradient_of_the_attention_probabilities(kernel: str) -> None:
    model = tiny_detector()
    model.backbone.config._attn_implementation = kernel
    image = pictures(3)
    with torch.no_grad():
        plain = model({"image": image})["cls"]
    explanation = model.explain({"image": image}, layers=NAMES, method="legrad", target="margin")
    assert torch.equal(explanation.logits, plain)  # nothing was recomputed or replaced in the forward pass
    logits, probabilities = attended(model, image)
    torch.testing.assert_close(plain.double(), logits, rtol=0, atol=1e-5)
    for name, P in zip(NAMES, probabilities):
        assert P.grad is not None
        evidence = P.grad.clamp(min=0).mean(dim=(1, 2))[:, 1:].unflatten(1, (SIDE, SIDE))
        signed = P.grad.mean(dim=(1, 2))[:, 1:].unflatten(1, (SIDE, SIDE))
        scale = float(evidence.max())
        np.testing.assert_allclose(explanation.layers[name].raw / scale, evidence / scale, atol=1e-5)
        np.testing.assert_allclose(explanation.layers[name].signed / scale, signed / scale, atol=1e-5)


def test_rollout_multiplies_the_blocks() -> None:
    model = tiny_detector()
    image = pictures(2)
    maps = model.explain({"image": image}, layers=["encoder.layers.2"], method="rollout").layers["encoder.layers.2"]
    _, probabilities = attended(model, image)
    for i in range(2):
        joint = np.eye(SIDE * SIDE + 1)
        for P in probabilities[:3]:
            joint = (P[i].detach().numpy().mean(0) + np.eye(len(joint))) / 2 @ joint
        np.testing.assert_allclose(maps.raw[i], joint[0, 1:].reshape(SIDE, SIDE), atol=1e-6)


def test_attention_methods_leave_nothing_behind_and_refuse_other_layers() -> None:
    model = tiny_detector()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    for method in ("legrad", "rollout"):
        model.explain({"image": pictures(1)}, layers=NAMES[-1:], method=method)
        with pytest.raises(LayerError, match=r"encoder\.layers\.1\.mlp.*has no attention"):
            model.explain({"image": pictures(1)}, layers=["encoder.layers.1.mlp"], method=method)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_one_pass_gives_what_single_explanations_give() -> None:
    model = tiny_detector()
    image = pictures(3)
    forwards = []
    handle = model.backbone.register_forward_hook(lambda *_: forwards.append(1))
    methods, sites = ["gradcam", "layercam", "legrad", "rollout"], ["layer_norm1", "residual"]
    captured = model.capture({"image": image}, layers=NAMES, methods=methods, sites=sites, target="fake")
    handle.remove()
    assert len(forwards) == 1
    for method in methods:
        for site in sites:
            alone = model.explain({"image": image}, layers=NAMES, method=method, site=site, target="fake").layers
            for name, maps in captured.maps(method, site).items():
                torch.testing.assert_close(maps.raw, alone[name].raw, rtol=1e-4, atol=1e-7)


def test_fused_is_the_mean_of_the_normalised_maps() -> None:
    model = tiny_detector()
    layers = [NAMES[3], "fused", NAMES[1]]
    explanation = model.explain({"image": pictures(4)}, layers=layers, method="hirescam", site="residual")
    assert list(explanation.layers) == layers
    stretched = []
    for name in (NAMES[3], NAMES[1]):
        raw = explanation.layers[name].raw.numpy().astype(np.float64)
        low, high = raw.min((1, 2), keepdims=True), raw.max((1, 2), keepdims=True)
        stretched.append((raw - low) / np.where(high > low, high - low, 1))
    np.testing.assert_allclose(explanation.layers["fused"].raw, np.mean(stretched, axis=0), atol=1e-5)
    with pytest.raises(InputError, match="at least two"):
        model.explain({"image": pictures(1)}, layers=["fused", NAMES[0]])


def test_both_classes_side_by_side() -> None:
    model = tiny_detector()
    image = pictures(3)
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
    maps = model.explain({"image": pictures(3)}, layers=NAMES[2:3], method="hirescam").layers[NAMES[2]]
    assert (maps.signed < 0).any() and torch.equal(maps.raw, maps.signed.relu())
    with pytest.raises(InputError, match="gradcam_target 'fake' does not go with it"):
        tiny_detector(gradcam_signed=True, gradcam_target="fake")


def test_signed_overlay_is_red_above_zero_blue_below_and_the_picture_at_zero() -> None:
    grey = torch.full((1, 3, 1, 3), 100, dtype=torch.uint8)
    drawn = signed_overlay(grey, torch.tensor([[[1.0, 0.0, -1.0]]]))[0, 0].tolist()
    # By hand: 100 + 0.85 (ink - 100), inks (214, 0, 0) and (0, 76, 230).
    assert drawn == [[197, 15, 15], [100, 100, 100], [15, 80, 210]]


@pytest.mark.parametrize("name", ["hirescan", "layer-cam"])
def test_unknown_methods_are_answered_with_the_closest(name: str) -> None:
    with pytest.raises(InputError, match="did you mean '(hirescam|layercam)"):
        tiny_detector().explain({"image": pictures(1)}, method=name)


def test_effort_like_projections_are_read_all_the_same() -> None:
    """A projection replaced by another module of its name, as Effort does, gives the same LeGrad map."""

    class Split(torch.nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.main = torch.nn.Parameter(linear.weight.detach() * 0.25)
            self.residual = torch.nn.Parameter(linear.weight.detach() * 0.75)
            self.bias = linear.bias

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.main + self.residual, self.bias)

    model = tiny_detector()
    before = model.explain({"image": pictures(2)}, layers=NAMES, method="legrad", target="fake").layers
    for module in list(model.backbone.modules()):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            if hasattr(module, projection):
                setattr(module, projection, Split(getattr(module, projection)))
    after = model.explain({"image": pictures(2)}, layers=NAMES, method="legrad", target="fake").layers
    for name in NAMES:
        torch.testing.assert_close(after[name].raw, before[name].raw, rtol=1e-4, atol=1e-8)
