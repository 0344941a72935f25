"""The attention of a block, for each way of computing queries, keys and values.

Nothing here changes a block's result: hooks read it, or (`constant_queries_and_keys`) stop its gradient.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...base.threads import in_this_thread

Keep = Callable[[str, Tensor], None]  # a tensor's name, and the tensor
Heads = dict[str, Tensor]  # "q", "k", "v": (B, T, heads · d)

MIXED = "mixed"  # next to "q", "k" and "v": the result of `project` in the block itself


class Handle(Protocol):
    """The handle of a registered hook."""

    def remove(self) -> None: ...


class HeldAttention(abc.ABC):
    """What the balanced rule needs from a block's attention, or from several in one block."""

    @abc.abstractmethod
    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        """Register hooks that hold q and k constant. The block's result stays the same to the last bit."""


@dataclass(frozen=True)
class QueriesAndKeys(HeldAttention):
    """For several attentions: modules that return q or k, and modules that return q, k and v side by side."""

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
    """What methods need from a block's attention. A head's output is O = softmax(q kᵀ / √d) v."""

    heads: int

    @abc.abstractmethod
    def watch(self, names: tuple[str, ...], keep: Keep) -> list[Handle]:
        """Register hooks that call `keep` in each forward pass with the tensors in `names`: "q", "k", "v", MIXED.

        All are (B, T, heads · d) and detached; q and k are as the softmax reads them, after any norm and rotation.
        """

    @property
    @abc.abstractmethod
    def output(self) -> tuple[nn.Module, bool]:
        """Return the module that gives the gradient of the heads' outputs, and whether at its input."""

    tokens_first = False  # whether that module passes (T, B, C)

    def output_gradient(self, gradient: Tensor) -> Tensor:
        """Return ∂score/∂O from the gradient at `output`, both (B, T, C)."""
        return gradient

    def project(self, mixed: Tensor) -> Tensor:
        """Apply the block's projection to the heads' outputs side by side; `watch` keeps the result as MIXED."""
        return mixed

    @property
    @abc.abstractmethod
    def projections(self) -> tuple[nn.Module, ...]:
        """Return the modules whose outputs `of_first_token` needs: those that read the normalised tokens."""

    @abc.abstractmethod
    def of_first_token(self, tokens: Tensor, projected: Sequence[Tensor]) -> Heads:
        """Return q (B, 1, heads · d) of the first token, and k and v (B, T, heads · d) of all.

        They come from the normalised `tokens` (B, T, C) and the outputs of `projections`.
        """


@dataclass(frozen=True)
class AttentionModules(BlockAttention):
    """Projections that are modules.

    `q`, `k` and `v` return (B, T, heads · d); `out` reads the heads' outputs side by side, in the same shape. If there
    is a `rotary`, the module that reads `position_embeddings` (cos, sin), these rotate q and k of the patches.
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
        return QueriesAndKeys(separate=(self.q, self.k)).constant_queries_and_keys(held)


# ------------------------------------------------------------------------------------------------------------ formulas


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Compute P (B, heads, T, T) = softmax(q kᵀ / √d) from q and k, (B, heads, T, d)."""
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)


def mixed_by_constant(parts: Heads, heads: int) -> Tensor:
    """Compute the heads' outputs P v (B, T, heads · d), with constant P."""
    q, k, v = (parts[name].unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv")
    with torch.no_grad():
        P = probabilities(q, k)
    return (P @ v).transpose(1, 2).flatten(2)


def same_value(value: Tensor, linear: Tensor) -> Tensor:
    """Return `value` to the last bit, with the gradient of `linear`, which is finite and has the same shape."""
    return value.detach() + (linear - linear.detach()).to(value.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, before: int, halves: bool) -> Tensor:
    """Apply rotary positions (Su et al. 2021, eq. 34): rotate channel pairs of `x` (..., T, d) by the token's angle.

    The first `before` tokens are not patches and stay. A pair is channel i and i + d/2 with `halves`, else 2i and 2i+1.
    """
    patches = x[..., before:, :]
    if halves:
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([x[..., :before, :], (patches * cos + turned * sin).to(x.dtype)], dim=-2)


class Held:
    """Says how a backward pass holds something constant: always."""

    def constant(self, value: Tensor) -> Tensor:
        """Return `value` without a gradient."""
        return value.detach()

    def by(self, value: Tensor, linear: Tensor) -> Tensor:
        """Return `value` to the last bit, with the gradient of `linear`."""
        return same_value(value, linear)

    def instead(self, ordinary: Callable[[], Tensor], other: Tensor) -> Tensor:
        """Return `other`, which equals `ordinary()` but has the held gradient."""
        return other


class HeldLater(Held):
    """Like `Held`, but only once `now` is true, so that one forward pass serves both kinds of backward pass."""

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
    """A value with its ordinary gradient or, once held, the gradient of `linear` or none."""

    @staticmethod
    def forward(ctx: Any, ordinary: Tensor, linear: Tensor | None, held: HeldLater) -> Tensor:
        ctx.held = held
        return ordinary.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.held.now:
            return gradient, None, None
        return None, gradient if ctx.needs_input_grad[1] else None, None
