"""Functions with PyTorch's exact values, but other or cheaper derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..towers.attention import Held

ALWAYS = Held()
P_IN_CACHE = 2**20  # numbers: more attention weights are computed in parts that fit the processor's cache


def by_factor(x: Tensor, output: Tensor, held: Held = ALWAYS) -> Tensor:
    """Return `output` as x · r with constant r = output / x: an RMS norm's w / rms, an activation's secant.

    r is 0 where x is 0. `x` and `output` have one shape.
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.no_grad():
        factor = torch.where(precise == 0, torch.zeros_like(precise), output.to(precise.dtype) / precise)
    return held.by(output, precise * factor)


class EitherGradient(torch.autograd.Function):
    """An activation's output with its ordinary gradient, or its secant's if `by_secant()` is true by then."""

    @staticmethod
    def forward(ctx: Any, ordinary: Tensor, secant: Tensor, by_secant: Callable[[], bool]) -> Tensor:
        ctx.by_secant = by_secant
        return ordinary.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return (None, gradient, None) if ctx.by_secant() else (gradient, None, None)


class LayerNormOfConstantDeviation(torch.autograd.Function):
    """LayerNorm with the gradient of (x - mean) / σ · weight for a constant standard deviation σ."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.dims = tuple(range(-len(shape), 0))
        if x.dtype in (torch.float32, torch.float64):
            # F.layer_norm calls it too: the same bits, plus 1 / σ at no cost.
            normed, _, inverse = torch.native_layer_norm(x, list(shape), weight, bias, eps)
        else:  # autocast may compute these in float32
            normed = F.layer_norm(x, shape, weight, bias, eps)
            inverse = (x.float().var(dim=ctx.dims, unbiased=False, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(inverse, weight)
        ctx.shape = list(shape)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Call LayerNorm's derivative with x - mean = 0, which removes the term of the standard deviation."""
        inverse, weight = ctx.saved_tensors
        if inverse.dtype != gradient.dtype:
            scaled = gradient * inverse if weight is None else gradient * weight * inverse
            return scaled - scaled.mean(dim=ctx.dims, keepdim=True), None, None, None, None
        zeros, wanted = torch.zeros_like(gradient), [True, False, False]
        of_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, zeros, ctx.shape, torch.zeros_like(inverse), inverse, weight, None, wanted
        )
        return of_x, None, None, None, None


class AttentionOfConstantWeights(torch.autograd.Function):
    """softmax(s q kᵀ) v, as `attend` computes it, with constant P = softmax(s q kᵀ): ∂score/∂v = Pᵀ ∂score/∂O.

    PyTorch's fused CPU kernel always computes the gradients of q and k, even if nobody needs them. q is
    (B, heads, queries, d), k and v are (B, heads, T, d).
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.scale = scale
        return attend(q, k, v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        exact = torch.promote_types(gradient.dtype, torch.float32)
        q, k = (saved.to(exact) for saved in ctx.saved_tensors)
        of_v = gradient.new_empty(*k.shape[:3], gradient.shape[3])
        nothing = q.new_zeros(1, 1, 1)
        at_once = max(1, P_IN_CACHE // (q.shape[1] * q.shape[2] * k.shape[2]))
        with torch.autocast(gradient.device.type, enabled=False):
            for part in zip(*(tensor.split(at_once) for tensor in (q, k, gradient.to(exact), of_v)), strict=True):
                some_q, some_k, of_output, of_some_v = (tensor.flatten(0, 1) for tensor in part)
                P = torch.baddbmm(nothing, some_q, some_k.transpose(1, 2), beta=0, alpha=ctx.scale).softmax(dim=-1)
                of_some_v.copy_(torch.bmm(P.transpose(1, 2), of_output))
        return None, None, of_v, None, None
