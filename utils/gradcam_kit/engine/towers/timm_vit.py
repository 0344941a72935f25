"""timm's VisionTransformer and Eva (EVA, DINOv3, the Perception Encoder, rotary ViTs).

Tokens (B, T, C): `num_prefix_tokens` of CLS and registers, then the patches. `attn.qkv` is one projection. Gradient
checkpointing is `grad_checkpointing`, which counts in evaluation, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import (
    MIXED,
    BlockAttention,
    Handle,
    Heads,
    Keep,
    in_this_thread,
    mixed_by_constant,
    rotated,
    same_value,
    with_keywords,
)
from .family import Grid, TowerFamily, blocks_at, stride_of, submodule


@dataclass(frozen=True)
class TimmAttention(BlockAttention):
    """timm's attention: one `qkv` or three projections, norms of q and k, rotary positions, a norm before `proj`.

    Its parts are computed once more from what it reads, as `module.forward` does.
    """

    module: Any

    @property
    def heads(self) -> int:  # type: ignore[override]  # read from the module
        return int(self.module.num_heads)

    def queries_keys_values(self, x: Tensor, rope: Tensor | None) -> Heads:
        """`x` (B, T, C); `rope` (..., patches, 2 d): sines and cosines beside each other."""
        q, k, v = self._normed(*self._projected(x))
        if rope is not None:
            sin, cos = rope.chunk(2, dim=-1)
            before, halves = self.module.num_prefix_tokens, getattr(self.module, "rotate_half", False)
            q, k = (rotated(part, cos, sin, before, halves) for part in (q, k))
        return {name: part.transpose(1, 2).flatten(2) for name, part in zip("qkv", (q, k, v), strict=True)}

    def _normed(self, *projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v (B, T, heads · d) → (B, heads, T, d), with their norms."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected)
        q, k = (
            getattr(self.module, name, nn.Identity()).forward(part) for name, part in (("q_norm", q), ("k_norm", k))
        )
        return q, k, v

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        attention = self.module
        if attention.qkv is None:
            return tuple(getattr(attention, f"{name}_proj").forward(x) for name in "qkv")
        if getattr(attention, "q_bias", None) is None:
            return attention.qkv.forward(x).chunk(3, dim=-1)
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        if attention.qkv_bias_separate:
            return (attention.qkv.forward(x) + bias).chunk(3, dim=-1)
        return F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)

    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, rope: Tensor | None) -> None:
            with torch.no_grad():
                found = self.queries_keys_values(inputs[0], rope)
            for name in names:
                if name != MIXED:
                    keep(name, found[name])

        handles = [self._with_rope(hook)]
        if MIXED in names:
            handles.append(
                self.output[0].register_forward_pre_hook(lambda module, inputs: keep(MIXED, inputs[0].detach()))
            )
        return handles

    def _with_rope(self, hook: Callable[[nn.Module, Any, Tensor | None], None]) -> Handle:
        if not hasattr(self.module, "num_prefix_tokens"):  # only those that rotate have it
            return self.module.register_forward_pre_hook(lambda module, inputs: hook(module, inputs, None))
        return with_keywords(self.module, lambda module, inputs, keywords: hook(module, inputs, keywords.get("rope")))

    @property
    def output(self) -> tuple[nn.Module, bool]:
        norm: nn.Module | None = getattr(self.module, "norm", None)
        return (self.module.proj if norm is None else norm), True

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        plain = self.module.qkv is not None and getattr(self.module, "q_bias", None) is None
        return (self.module.qkv,) if plain else ()

    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        q, k, v = projected[0].chunk(3, dim=-1) if projected else self._projected(tokens)
        parts = self._normed(q[:, :1], k, v)
        return {name: part.transpose(1, 2).flatten(2) for name, part in zip("qkv", parts, strict=True)}

    def constant_queries_and_keys(self) -> list[Handle]:
        read: list[tuple[Tensor, Tensor | None]] = []

        def before(module: nn.Module, inputs: Any, rope: Tensor | None) -> None:
            read[:] = [(inputs[0], rope)]

        def at_output(module: nn.Module, inputs: Any) -> Any:
            x, rope = read.pop()
            if not x.requires_grad:
                return None
            linear = mixed_by_constant(self.queries_keys_values(x, rope), self.heads)
            return (same_value(inputs[0], linear), *inputs[1:])

        return [
            self._with_rope(in_this_thread(before)),
            self.output[0].register_forward_pre_hook(in_this_thread(at_output)),
        ]


class TimmViT(TowerFamily):
    """The module that holds `patch_embed` and `blocks`; also older ones and those made after its pattern."""

    name = "timm's VisionTransformer and Eva"
    signs = "patch_embed.proj, and blocks with norm1, attn.proj and mlp"

    def recognises(self, module: nn.Module) -> bool:
        return self.patch_size(module) is not None and blocks_at(
            module, "blocks", having=("norm1", "attn.proj", "attn.num_heads", "mlp")
        )

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        if submodule(tower, "patch_embed", "backbone") is not None:  # a small CNN before the patches
            rows, columns = submodule(tower, "patch_embed").feat_ratio()
            return int(rows), int(columns)
        return stride_of(submodule(tower, "patch_embed", "proj"))

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        patch = self.patch_size(tower)
        assert patch is not None, "a tower that was recognised"
        if submodule(tower, "patch_embed", "dynamic_img_pad"):  # pads at the right and at the bottom
            height, width, seen = height + -height % patch[0], width + -width % patch[1], (height, width)
            patches = Grid(height // patch[0], width // patch[1], self.prefix(tower))
            return patches.covering(patch, seen)
        return super().grid(tower, height, width)

    def prefix(self, tower: nn.Module) -> int:
        count = submodule(tower, "num_prefix_tokens")
        if count is not None:
            return int(count)
        names = ("cls_token", "dist_token")  # before timm 0.8
        return sum(isinstance(submodule(tower, name), nn.Parameter) for name in names)

    def block_names(self, tower: nn.Module) -> list[str]:
        return [f"blocks.{i}" for i in range(len(submodule(tower, "blocks")))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("norm1")

    def attention(self, block: nn.Module) -> TimmAttention | None:
        attention = submodule(block, "attn")
        fused = submodule(attention, "qkv") is not None
        separate = all(submodule(attention, f"{name}_proj") is not None for name in "qkv")
        gated = submodule(attention, "gate") is not None or (submodule(attention, "num_kv_groups") or 1) > 1
        return TimmAttention(attention) if (fused or separate) and not gated else None
