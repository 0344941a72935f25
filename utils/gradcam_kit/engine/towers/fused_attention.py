"""Attention whose queries, keys and values are recomputed from its input: timm's and PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...base.errors import InputError
from ...base.threads import in_this_thread
from .attention import MIXED, BlockAttention, Handle, Heads, Held, Keep, mixed_by_constant, rotated


@dataclass(frozen=True)
class TimmAttention(BlockAttention):
    """timm's attention: one `qkv` or three projections, norms of q and k, rotary positions, a norm before `proj`.

    The code recomputes its parts from its input, like `module.forward`.
    """

    module: Any

    @property
    def heads(self) -> int:  # type: ignore[override]  # read from the module
        return int(self.module.num_heads)

    def queries_keys_values(self, x: Tensor, rope: Tensor | None) -> Heads:
        """Recompute q, k and v from `x` (B, T, C) and `rope` (..., patches, 2 d), sines next to cosines."""
        q, k, v = self._normed(*self._projected(x))
        if rope is not None:
            sin, cos = rope.chunk(2, dim=-1)
            before, halves = self.module.num_prefix_tokens, getattr(self.module, "rotate_half", False)
            q, k = (rotated(part, cos, sin, before, halves) for part in (q, k))
        return {name: part.transpose(1, 2).flatten(2) for name, part in zip("qkv", (q, k, v), strict=True)}

    def _normed(self, *projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, given as (B, T, heads · d), as (B, heads, T, d) after their norms."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected)
        q_norm, k_norm = (getattr(self.module, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        return q_norm.forward(q), k_norm.forward(k), v

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
            reads = self.output[0]
            mixed = in_this_thread(lambda module, inputs: keep(MIXED, inputs[0].detach()))
            handles.append(reads.register_forward_pre_hook(mixed))
        return handles

    def _with_rope(self, hook: Callable[[nn.Module, Any, Tensor | None], None]) -> Handle:
        if not hasattr(self.module, "num_prefix_tokens"):  # only those that rotate have it
            without = in_this_thread(lambda module, inputs: hook(module, inputs, None))
            return self.module.register_forward_pre_hook(without)
        given = in_this_thread(lambda module, inputs, keywords: hook(module, inputs, keywords.get("rope")))
        return self.module.register_forward_pre_hook(given, with_kwargs=True)

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

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        read: list[tuple[Tensor, Tensor | None]] = []

        def before(module: nn.Module, inputs: Any, rope: Tensor | None) -> None:
            read[:] = [(inputs[0], rope)]

        def at_output(module: nn.Module, inputs: Any) -> Any:
            x, rope = read.pop()
            if not x.requires_grad:
                return None
            linear = mixed_by_constant(self.queries_keys_values(x, rope), self.heads)
            return (held.by(inputs[0], linear), *inputs[1:])

        return [self._with_rope(before), self.output[0].register_forward_pre_hook(in_this_thread(at_output))]


@dataclass(frozen=True)
class TorchAttention(BlockAttention):
    """`nn.MultiheadAttention`: q, k and v share a parameter, and the output projection never runs as a module.

    The code therefore recomputes q, k and v from its input, and gets ∂score/∂O from the output's gradient through the
    weight of the output projection.
    """

    module: nn.MultiheadAttention

    @property
    def heads(self) -> int:  # type: ignore[override]  # read from the module
        return self.module.num_heads

    @property
    def tokens_first(self) -> bool:  # type: ignore[override]  # read from the module
        return not self.module.batch_first

    def queries_keys_values(self, x: Tensor) -> Heads:
        """Recompute q, k and v from `x` (B, T, C)."""
        projected = F.linear(x, self.module.in_proj_weight, self.module.in_proj_bias).chunk(3, dim=-1)
        return dict(zip("qkv", projected, strict=True))

    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            with torch.no_grad():
                found = self.queries_keys_values(self._tokens(inputs))
                found[MIXED] = self._batch_first(output[0])
            for name in names:
                keep(name, found[name])

        return [self.module.register_forward_hook(in_this_thread(hook))]

    def _tokens(self, inputs: Any) -> Tensor:
        """Return the tokens that attend to themselves, (B, T, C)."""
        if len(inputs) < 3 or not inputs[0] is inputs[1] is inputs[2]:
            raise InputError(
                "nn.MultiheadAttention is read where query, key and value are one tensor, given in this order"
            )
        return self._batch_first(inputs[0])

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1) if self.tokens_first else tokens

    @property
    def output(self) -> tuple[nn.Module, bool]:
        return self.module, False

    def output_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.module.out_proj.weight.detach().to(gradient.dtype)

    def project(self, mixed: Tensor) -> Tensor:
        weight, bias = self.module.out_proj.weight, self.module.out_proj.bias
        return F.linear(mixed, weight.to(mixed.dtype), None if bias is None else bias.to(mixed.dtype))

    projections = ()  # none is a module

    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        weight, bias, width = self.module.in_proj_weight, self.module.in_proj_bias, tokens.shape[2]
        of_q, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
        k, v = F.linear(tokens, weight[width:], of_rest).chunk(2, dim=-1)
        return {"q": F.linear(tokens[:, :1], weight[:width], of_q), "k": k, "v": v}

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not inputs[0].requires_grad:
                return None
            linear = self.project(mixed_by_constant(self.queries_keys_values(self._tokens(inputs)), self.heads))
            return (held.by(output[0], self._batch_first(linear)), *output[1:])

        return [self.module.register_forward_hook(in_this_thread(hook))]


def multihead_attention(block: nn.Module) -> nn.MultiheadAttention | None:
    """Return the only `nn.MultiheadAttention` among the parts of `block`; None if there is none or several."""
    found = [part for part in block.children() if isinstance(part, nn.MultiheadAttention)]
    return found[0] if len(found) == 1 else None


def torch_attention(block: nn.Module) -> TorchAttention | None:
    """Return the block's attention; None unless q, k and v are one projection of the tokens only."""
    module = multihead_attention(block)
    if module is None or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return None
    return TorchAttention(module)
