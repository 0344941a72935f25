"""timm's attention within a block."""

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
