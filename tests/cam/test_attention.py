"""LeGrad and rollout inside a detector: against autograd through the attention, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, images, tiny_detector
from tests.helpers.references import reference_clip as reference
from utils.gradcam_kit.engine.attention import ATTENTION_METHODS, AttentionMethod, BlockTensors, TokenMaps
from utils.gradcam_kit.engine.layers import LayerError

SIDE = PIXELS // PATCH
HEADS = ARCHITECTURE["num_attention_heads"]
NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]
MARGIN = [-1.0, 1.0]


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
    image = images(3)
    with torch.no_grad():
        plain = model({"image": image})["cls"]
    explanation = model.explain({"image": image}, layers=NAMES, method="legrad", target="margin")
    assert torch.equal(explanation.logits, plain)  # nothing was recomputed or replaced in the forward pass
    logits, probabilities = attended(model, image)
    torch.testing.assert_close(plain.double(), logits, rtol=0, atol=1e-5)
    for name, P in zip(NAMES, probabilities, strict=True):
        assert P.grad is not None
        evidence = P.grad.clamp(min=0).mean(dim=(1, 2))[:, 1:].unflatten(1, (SIDE, SIDE))
        signed = P.grad.mean(dim=(1, 2))[:, 1:].unflatten(1, (SIDE, SIDE))
        scale = float(evidence.max())
        np.testing.assert_allclose(explanation.layers[name].raw / scale, evidence / scale, atol=1e-5)
        np.testing.assert_allclose(explanation.layers[name].signed / scale, signed / scale, atol=1e-5)


def test_rollout_multiplies_the_blocks() -> None:
    model = tiny_detector()
    image = images(2)
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
        model.explain({"image": images(1)}, layers=NAMES[-1:], method=method)
        with pytest.raises(LayerError, match=r"encoder\.layers\.1\.mlp.*has no attention"):
            model.explain({"image": images(1)}, layers=["encoder.layers.1.mlp"], method=method)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_another_method_is_a_function_and_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of the keys, as a method that nobody knows of."""

    def key_norm(blocks: Sequence[BlockTensors]) -> list[TokenMaps]:
        norms = [block.by_head("k").norm(dim=3).mean(dim=1) for block in blocks]
        return [TokenMaps(norm, norm) for norm in norms]

    monkeypatch.setitem(ATTENTION_METHODS, "key norm", AttentionMethod("key norm", ("k",), False, False, key_norm))
    model, kept = tiny_detector(), []
    module = model.backbone.encoder.layers[1].self_attn.k_proj
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    maps = model.explain({"image": images(2)}, layers=[NAMES[3], NAMES[1]], method="key norm").layers[NAMES[1]]
    handle.remove()
    expected = np.linalg.norm(kept[0].double().numpy().reshape(2, -1, HEADS, 32 // HEADS), axis=3).mean(axis=2)
    np.testing.assert_allclose(maps.raw, expected[:, 1:].reshape(2, SIDE, SIDE), rtol=1e-5)


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
    before = model.explain({"image": images(2)}, layers=NAMES, method="legrad", target="fake").layers
    for module in list(model.backbone.modules()):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            if hasattr(module, projection):
                setattr(module, projection, Split(getattr(module, projection)))
    after = model.explain({"image": images(2)}, layers=NAMES, method="legrad", target="fake").layers
    for name in NAMES:
        torch.testing.assert_close(after[name].raw, before[name].raw, rtol=1e-4, atol=1e-8)
