"""CLIP once more, in float64 and from its formulas: nothing here uses the library.

The tower is computed from the numbers of a state dict; every intermediate result is kept under the name of the module
that gives it, so that autograd can be asked for its gradient.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.references.method_references import TokenReference


class ReferenceTower:
    """Forward pass from a detector's state dict; `points` is what each module returns, `inputs` what a block reads."""

    def __init__(self, state: dict[str, Tensor], blocks: int, heads: int, patch: int) -> None:
        self.state = {key: value.detach().double() for key, value in state.items()}
        self.blocks, self.heads, self.patch = blocks, heads, patch
        self.points: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.state[f"backbone.{name}.weight"].T + self.state[f"backbone.{name}.bias"]
        return self.keep(name, y)

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / self.scale(torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5))
        y = scaled * self.state[f"backbone.{name}.weight"] + self.state[f"backbone.{name}.bias"]
        return self.keep(name, y)

    def scale(self, value: Tensor) -> Tensor:
        """What only scales or weighs tokens: LayerNorm's σ, queries and keys."""
        return value

    def gate(self, value: Tensor) -> Tensor:
        """The factor that QuickGELU puts before its input."""
        return value

    def keep(self, name: str, value: Tensor) -> Tensor:
        if value.requires_grad:
            value.retain_grad()
        self.points[name] = value
        return value

    def block(self, x: Tensor, i: int) -> Tensor:
        name = f"encoder.layers.{i}"
        self.inputs[name] = x
        if x.requires_grad:
            x.retain_grad()
        y = self.norm(x, f"{name}.layer_norm1")
        q, k, v = (self.linear(y, f"{name}.self_attn.{one}_proj") for one in "qkv")
        q, k = self.scale(q), self.scale(k)
        b, t, c = q.shape
        q, k, v = (one.reshape(b, t, self.heads, c // self.heads).permute(0, 2, 1, 3) for one in (q, k, v))
        logits = q @ k.transpose(2, 3) / np.sqrt(c // self.heads)
        mixed = (torch.softmax(logits, -1) @ v).permute(0, 2, 1, 3).reshape(b, t, c)
        x = x + self.linear(mixed, f"{name}.self_attn.out_proj")
        hidden = self.linear(self.norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        hidden = hidden * self.gate(torch.sigmoid(1.702 * hidden))
        return self.keep(name, x + self.linear(hidden, f"{name}.mlp.fc2"))

    def logits(self, image: Tensor) -> Tensor:
        s = self.state
        patches = F.conv2d(image, s["backbone.embeddings.patch_embedding.weight"], stride=self.patch)
        patches = patches.flatten(2).transpose(1, 2)
        cls = s["backbone.embeddings.class_embedding"].expand(len(image), 1, -1)
        x = torch.cat([cls, patches], 1) + s["backbone.embeddings.position_embedding.weight"]
        x = self.norm(x.requires_grad_(), "pre_layrnorm")
        for i in range(self.blocks):
            x = self.block(x, i)
        pooled = self.norm(x[:, 0], "post_layernorm")
        return pooled @ s["head.weight"].T + s["head.bias"]


class BalancedTower(ReferenceTower):
    """The same numbers; what only scales or weighs tokens is a constant for the gradient."""

    def scale(self, value: Tensor) -> Tensor:
        return value.detach()


class LinearTower(BalancedTower):
    """QuickGELU's factor is a constant, too: from a block's tokens on, the logits are linear."""

    def gate(self, value: Tensor) -> Tensor:
        return value.detach()


def reference_gradients(
    state: dict[str, Tensor],
    image: Tensor,
    blocks: int,
    heads: int,
    patch: int,
    coefficients: list[list[float]],
    kind: type[ReferenceTower] = ReferenceTower,
) -> ReferenceTower:
    """Run and differentiate Σ coefficients · logits, one image after the other, so that no batch can leak."""
    tower = kind(state, blocks, heads, patch)
    logits = tower.logits(image.double())
    (logits * torch.tensor(coefficients, dtype=torch.float64)).sum().backward()
    return tower


def grid_of(tokens: Tensor, side: tuple[int, int]) -> np.ndarray:
    """(T, C) tokens of one image, CLS first → (C, h, w)."""
    return tokens.detach().numpy()[1:].T.reshape(-1, *side)


def maps_of(tower: ReferenceTower, name: str, site: str, formula: TokenReference, side: tuple[int, int]) -> np.ndarray:
    """Raw maps (B, h, w) of one layer; a block's name means its first norm or, at `residual`, what the block reads."""
    tokens = tower.points[name]
    if name in tower.inputs:
        tokens = tower.points[f"{name}.layer_norm1"] if site == "layer_norm1" else tower.inputs[name]
    assert tokens.grad is not None
    pairs = zip(tokens, tokens.grad, strict=True)
    return np.stack([np.maximum(formula(grid_of(A, side), grid_of(G, side)), 0) for A, G in pairs])
