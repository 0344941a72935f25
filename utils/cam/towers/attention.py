"""The attention of one block, whichever way its queries, keys and values are computed.

Nothing here changes what a block computes: hooks read it, or (`constant_queries_and_keys`) stop its gradient.
"""

from __future__ import annotations

import abc
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, Protocol, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError

Keep = Callable[[str, Tensor], None]  # name of a tensor, and the tensor
Heads = Dict[str, Tensor]  # "q", "k", "v": (B, T, heads · d)

MIXED = "mixed"  # beside "q", "k" and "v": what `project` makes of the heads' outputs in the block itself


class Handle(Protocol):
    """What registering a hook returns."""

    def remove(self) -> None: ...


class BlockAttention(abc.ABC):
    """What methods need of a block's attention. A head's output is O = softmax(q kᵀ / √d) v."""

    heads: int

    @abc.abstractmethod
    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        """Hooks that call `keep` in each forward pass with those of "q", "k", "v" and MIXED that are in `names`.

        All (B, T, heads · d), detached; q and k as the softmax reads them: normalised and rotated, where they are.
        """

    @property
    @abc.abstractmethod
    def output(self) -> tuple[nn.Module, bool]:
        """The module at which the gradient of the heads' outputs is read, and whether by its input."""

    tokens_first = False  # whether that module passes (T, B, C)

    def output_gradient(self, gradient: Tensor) -> Tensor:
        """∂score/∂O from the gradient at `output`, both (B, T, C)."""
        return gradient

    def project(self, mixed: Tensor) -> Tensor:
        """The heads' outputs side by side → what the block makes of them, which `watch` keeps as MIXED."""
        return mixed

    @abc.abstractmethod
    def constant_queries_and_keys(self) -> list[Handle]:
        """Hooks that stop the gradient through q and k. What the block computes stays the same to the last bit."""

    @property
    @abc.abstractmethod
    def projections(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs `of_first_token` needs: those that read the normalised tokens."""

    @abc.abstractmethod
    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        """q (B, 1, heads · d) of the first token, k and v (B, T, heads · d) of all.

        From the normalised `tokens` (B, T, C) and what `projections` have made of them.
        """


@dataclass(frozen=True)
class AttentionModules(BlockAttention):
    """Projections that are modules.

    `q`, `k` and `v` return (B, T, heads · d); `out` reads the heads' outputs side by side, of the same shape. With
    `rotary`, the module that reads `position_embeddings` (cos, sin), q and k of the patches are rotated by these.
    """

    heads: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    rotary: nn.Module | None = None

    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        angles: list[tuple[Tensor, Tensor]] = []
        handles: list[Handle] = []

        def read_angles(module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> None:
            angles[:] = [keywords["position_embeddings"]]

        def read_output(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                turned = angles and name in ("q", "k")
                keep(name, self._rotated(output.detach(), *angles[0]) if turned else output.detach())

            return hook

        if self.rotary is not None and {"q", "k"} & set(names):
            handles.append(with_keywords(self.rotary, read_angles))
        for name in names:
            if name == MIXED:
                hook = self.out.register_forward_pre_hook(lambda module, inputs: keep(MIXED, inputs[0].detach()))
                handles.append(hook)
            else:
                handles.append(getattr(self, name).register_forward_hook(read_output(name)))
        return handles

    def _rotated(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        by_head = tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return rotated(by_head, cos, sin, by_head.shape[2] - cos.shape[-2], halves=True).transpose(1, 2).flatten(2)

    @property
    def output(self) -> tuple[nn.Module, bool]:
        return self.out, True

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        return self.k, self.v

    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        k, v = projected
        return {"q": self.q(tokens[:, :1]), "k": k, "v": v}

    def constant_queries_and_keys(self) -> list[Handle]:
        hook = in_this_thread(lambda module, inputs, output: output.detach())
        return [module.register_forward_hook(hook) for module in (self.q, self.k)]


@dataclass(frozen=True)
class TorchAttention(BlockAttention):
    """`nn.MultiheadAttention`, whose q, k and v are one parameter and whose output projection never runs as a module.

    So q, k and v are computed once more from what it reads, and ∂score/∂O is the gradient of its output through the
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
        """`x` (B, T, C)."""
        return dict(zip("qkv", F.linear(x, self.module.in_proj_weight, self.module.in_proj_bias).chunk(3, dim=-1)))

    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            with torch.no_grad():
                found = self.queries_keys_values(self._tokens(inputs))
                found[MIXED] = self._batch_first(output[0])
            for name in names:
                keep(name, found[name])

        return [self.module.register_forward_hook(hook)]

    def _tokens(self, inputs: Any) -> Tensor:
        """What attends to itself, (B, T, C)."""
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

    def constant_queries_and_keys(self) -> list[Handle]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not inputs[0].requires_grad:
                return None
            linear = self.project(mixed_by_constant(self.queries_keys_values(self._tokens(inputs)), self.heads))
            return (same_value(output[0], self._batch_first(linear)), *output[1:])

        return [self.module.register_forward_hook(in_this_thread(hook))]


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
        return {name: part.transpose(1, 2).flatten(2) for name, part in zip("qkv", (q, k, v))}

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
        return {name: part.transpose(1, 2).flatten(2) for name, part in zip("qkv", parts)}

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


# ------------------------------------------------------------------------------------------------------------ formulas


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """P (B, heads, T, T) = softmax(q kᵀ / √d), from (B, heads, T, d)."""
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)


def mixed_by_constant(parts: Heads, heads: int) -> Tensor:
    """The heads' outputs P v (B, T, heads · d), with P a constant."""
    q, k, v = (parts[name].unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv")
    with torch.no_grad():
        P = probabilities(q, k)
    return (P @ v).transpose(1, 2).flatten(2)


def same_value(value: Tensor, linear: Tensor) -> Tensor:
    """`value` to the last bit, with the gradient of `linear`."""
    return value.detach() + (linear - linear.detach())


def rotated(x: Tensor, cos: Tensor, sin: Tensor, before: int, halves: bool) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34): pairs of channels of `x` (..., T, d) turned by their token's angle.

    The first `before` tokens are no patches and stay. A pair is channel i and i + d/2 with `halves`, else 2i and 2i+1.
    """
    patches = x[..., before:, :]
    if halves:
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([x[..., :before, :], (patches * cos + turned * sin).to(x.dtype)], dim=-2)


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` for passes of the thread that calls this; those of others go by untouched."""
    thread = threading.get_ident()
    return lambda *arguments: hook(*arguments) if threading.get_ident() == thread else None


def with_keywords(module: nn.Module, hook: Callable[[nn.Module, Any, dict[str, Any]], None]) -> Handle:
    """A pre-hook that sees keyword arguments, too. Raises InputError for a PyTorch without such."""
    try:
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    except TypeError:
        raise InputError(
            f"{type(module).__name__} gets its rotary positions by keyword, which hooks see from PyTorch 2.0 on:"
            " use gradcam or layercam, or a newer PyTorch"
        ) from None
