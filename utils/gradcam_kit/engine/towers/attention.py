"""The attention of one block, whichever way its queries, keys and values are computed.

Nothing here changes what a block computes: hooks read it, or (`constant_queries_and_keys`) stop its gradient.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...base.threads import in_this_thread

Keep = Callable[[str, Tensor], None]  # name of a tensor, and the tensor
Heads = dict[str, Tensor]  # "q", "k", "v": (B, T, heads · d)

MIXED = "mixed"  # beside "q", "k" and "v": what `project` makes of the heads' outputs in the block itself


class Handle(Protocol):
    """What registering a hook returns."""

    def remove(self) -> None: ...


class HeldAttention(abc.ABC):
    """What the balanced rule needs of a block's attention, or of several that a block has."""

    @abc.abstractmethod
    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        """Hooks that hold q and k constant. What the block computes stays the same to the last bit."""


@dataclass(frozen=True)
class QueriesAndKeys(HeldAttention):
    """Of several attentions: modules that return q or k, and modules that return q, k and v side by side."""

    separate: tuple[nn.Module, ...] = ()
    packed: tuple[nn.Module, ...] = ()

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        def whole(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            return held.constant(output) if output.requires_grad else None

        def two_thirds(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            width = output.shape[-1] // 3
            q_and_k, v = output.split((2 * width, width), dim=-1)
            return torch.cat([held.constant(q_and_k), v], dim=-1) if output.requires_grad else None

        rules = [(module, whole) for module in self.separate] + [(module, two_thirds) for module in self.packed]
        return [module.register_forward_hook(in_this_thread(rule)) for module, rule in rules]


class BlockAttention(HeldAttention):
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
            handles.append(self.rotary.register_forward_pre_hook(in_this_thread(read_angles), with_kwargs=True))
        for name in names:
            if name == MIXED:
                mixed = in_this_thread(lambda module, inputs: keep(MIXED, inputs[0].detach()))
                handles.append(self.out.register_forward_pre_hook(mixed))
            else:
                handles.append(getattr(self, name).register_forward_hook(in_this_thread(read_output(name))))
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

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        hook = in_this_thread(lambda module, inputs, output: held.constant(output) if output.requires_grad else None)
        return [module.register_forward_hook(hook) for module in (self.q, self.k)]


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
    """`value` to the last bit, with the gradient of `linear`, which is finite and of the same shape."""
    return value.detach() + (linear - linear.detach()).to(value.dtype)


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


class Held:
    """How a backward pass holds something constant: always."""

    def constant(self, value: Tensor) -> Tensor:
        """`value`, through which no gradient goes."""
        return value.detach()

    def by(self, value: Tensor, linear: Tensor) -> Tensor:
        """`value` to the last bit, with the gradient of `linear`."""
        return same_value(value, linear)

    def instead(self, ordinary: Callable[[], Tensor], other: Tensor) -> Tensor:
        """`other`, which has the value that `ordinary` gives, and a gradient that holds."""
        return other


class HeldLater(Held):
    """As `Held`, but only once `now` is true: one forward pass serves an ordinary backward pass and one that holds."""

    def __init__(self) -> None:
        self.now = False

    def constant(self, value: Tensor) -> Tensor:
        held: Tensor = _Either.apply(value, None, self)
        return held

    def by(self, value: Tensor, linear: Tensor) -> Tensor:
        held: Tensor = _Either.apply(value, linear, self)
        return held

    def instead(self, ordinary: Callable[[], Tensor], other: Tensor) -> Tensor:
        return self.by(ordinary(), other)


class _Either(torch.autograd.Function):
    """A value with its ordinary gradient or, once that is held, the gradient of `linear`, or none."""

    @staticmethod
    def forward(ctx: Any, ordinary: Tensor, linear: Tensor | None, held: HeldLater) -> Tensor:
        ctx.held = held
        return ordinary.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.held.now:
            return gradient, None, None
        return None, gradient if ctx.needs_input_grad[1] else None, None
