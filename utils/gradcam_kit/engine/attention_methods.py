"""Attention methods, one function each: LeGrad, Grad-ECLIP, attention × gradient, rollout.

P = softmax(q kᵀ / √d) are a block's attention probabilities, O = P V a head's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .towers.attention import probabilities

OUTPUT_GRADIENT = "output_gradient"  # next to "q", "k" and "v": ∂score/∂O of the block


class TokenMaps(NamedTuple):
    """Maps of B images with T tokens, both (B, T), including prefix tokens."""

    signed: Tensor
    raw: Tensor


class BlockTensors(NamedTuple):
    """The kept tensors of a block's attention: `tensors` (B, T, heads · d), as named by the method."""

    heads: int
    tensors: Mapping[str, Tensor]

    def by_head(self, name: str) -> Tensor:
        """Return a tensor (B, T, heads · d) as (B, heads, T, d), float32 (float64 for a float64 model)."""
        tokens = self.tensors[name]
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def probabilities(self) -> Tensor:
        """Compute P (B, heads, T, T) from queries and keys."""
        return probabilities(self.by_head("q"), self.by_head("k"))


@dataclass(frozen=True)
class AttentionMethod:
    """A method that reads attention.

    The forward pass keeps a block's `projections` ("q", "k", "v"); with `needs_output_gradient`, the backward pass also
    keeps ∂score/∂O.
    `maps` takes the explained blocks or, with `every_block`, all blocks from the first to the last explained one. It
    yields the maps of each block in order.
    """

    name: str
    projections: tuple[str, ...]
    every_block: bool
    needs_output_gradient: bool
    maps: Callable[[Sequence[BlockTensors]], Iterable[TokenMaps]]
    needs_class_token: bool = False  # its map shows what the class token reads
    sum_of: str | None = "signed"  # which maps are added over blocks, "signed" or "raw"; None: they cannot be added


# ------------------------------------------------------------------------------------------------------------- methods


def legrad(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Compute LeGrad: mean over heads and queries of ReLU(∂score/∂P), per key (Bousselham et al. 2024, eq. 6 to 8).

    In the paper, each layer has its own score, from comparing its tokens with a text. A detector's head only fits its
    last block, so the score here is the detector's. The signed map is the same mean without ReLU.
    """
    for block in blocks:
        gradient = block.by_head(OUTPUT_GRADIENT) @ block.by_head("v").transpose(2, 3)
        yield TokenMaps(gradient.mean(dim=(1, 2)), gradient.relu().mean(dim=(1, 2)))


def rollout(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Compute rollout: the CLS row of ∏ (P̄ + I) / 2 over the blocks, first to last (Abnar and Zuidema 2020, eq. 1).

    P̄ is the mean over heads. The map does not depend on the class and is never negative.
    """
    joint = None
    for block in blocks:
        P = block.probabilities().mean(dim=1)
        step = (P + torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)) / 2
        joint = step if joint is None else step @ joint
        yield TokenMaps(joint[:, 0], joint[:, 0])


def grad_eclip(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Compute Grad-ECLIP: λ_i Σ_c w_c v_ic, w = ∂score/∂O of CLS, λ_i its similarity to key i (Zhao et al. 2025).

    λ is the cosine of the CLS token's query and the key over all channels, min-max normalised over the other tokens. It
    is less sparse than the softmax weight, which is near 0 for most tokens (arXiv 2502.18816, section 3).
    """
    for block in blocks:
        q, k, v, w = (block.by_head(name).transpose(1, 2).flatten(2) for name in ("q", "k", "v", OUTPUT_GRADIENT))
        likeness = torch.cosine_similarity(q[:, :1], k, dim=2)
        lowest = likeness[:, 1:].amin(dim=1, keepdim=True)
        span = likeness[:, 1:].amax(dim=1, keepdim=True) - lowest
        weight = (likeness - lowest) / torch.where(span > 0, span, torch.ones_like(span))
        signed = weight * torch.einsum("bc,btc->bt", w[:, 0], v)
        yield TokenMaps(signed, signed.relu())


def attention_gradient(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Compute attention × gradient: the CLS row of mean over heads of P ⊙ ∂score/∂P (Chefer et al. 2021, eq. 5)."""
    for block in blocks:
        gradient = torch.einsum("bhc,bhtc->bht", block.by_head(OUTPUT_GRADIENT)[:, :, 0], block.by_head("v"))
        signed = (block.probabilities()[:, :, 0] * gradient).mean(dim=1)
        yield TokenMaps(signed, signed.relu())


ATTENTION_METHODS = {
    method.name: method
    for method in (
        AttentionMethod("legrad", ("v",), every_block=False, needs_output_gradient=True, maps=legrad, sum_of="raw"),
        AttentionMethod("gradeclip", ("q", "k", "v"), False, True, maps=grad_eclip, needs_class_token=True),
        AttentionMethod("attngrad", ("q", "k", "v"), False, True, maps=attention_gradient, needs_class_token=True),
        AttentionMethod("rollout", ("q", "k"), True, False, maps=rollout, needs_class_token=True, sum_of=None),
    )
}
