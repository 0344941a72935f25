"""Methods that read a block's attention, one function per method: LeGrad, Grad-ECLIP, attention × gradient, rollout.

P = softmax(q kᵀ / √d) are a block's attention probabilities, O = P V a head's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .towers.attention import probabilities

OUTPUT_GRADIENT = "output_gradient"  # beside "q", "k" and "v": ∂score/∂O of the block


class TokenMaps(NamedTuple):
    """The maps of B images of T tokens, both (B, T), prefix tokens included."""

    signed: Tensor
    raw: Tensor


class BlockTensors(NamedTuple):
    """What a pass has kept of one block's attention: `tensors` (B, T, heads · d) are those that the method names."""

    heads: int
    tensors: Mapping[str, Tensor]

    def by_head(self, name: str) -> Tensor:
        """(B, T, heads · d) → (B, heads, T, d), float32 (float64 for a float64 model)."""
        tokens = self.tensors[name]
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def probabilities(self) -> Tensor:
        """P (B, heads, T, T), from queries and keys."""
        return probabilities(self.by_head("q"), self.by_head("k"))


@dataclass(frozen=True)
class AttentionMethod:
    """A method that reads attention.

    `projections` ("q", "k", "v") of a block are kept for it and, with `needs_output_gradient`, ∂score/∂O beside them.
    `maps` gets the blocks that are explained or, with `every_block`, all blocks from the first to the last of these,
    and gives the maps of each, in their order.
    """

    name: str
    projections: tuple[str, ...]
    every_block: bool
    needs_output_gradient: bool
    maps: Callable[[Sequence[BlockTensors]], Iterable[TokenMaps]]
    needs_class_token: bool = False  # its map is what the first token, which is no patch, reads
    sum_of: str | None = "signed"  # which of its maps are added over blocks, "signed" or "raw"; None: they do not add


# ------------------------------------------------------------------------------------------------------------- methods


def legrad(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """LeGrad: mean over heads and queries of ReLU(∂score/∂P), one value per key (Bousselham et al. 2024, eq. 6 to 8).

    The paper gives each layer a score of its own, by comparing that layer's tokens with a text. A detector's head is
    for its last block alone, so the score here is the detector's own. Signed: the same mean without the ReLU.
    """
    for block in blocks:
        gradient = block.by_head(OUTPUT_GRADIENT) @ block.by_head("v").transpose(2, 3)
        yield TokenMaps(gradient.mean(dim=(1, 2)), gradient.relu().mean(dim=(1, 2)))


def rollout(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Attention rollout: ∏ (P̄ + I) / 2 over the blocks, first to last; the CLS row (Abnar and Zuidema 2020, eq. 1).

    P̄ is the mean over heads. It knows no class, and nothing in it is negative.
    """
    joint = None
    for block in blocks:
        P = block.probabilities().mean(dim=1)
        step = (P + torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)) / 2
        joint = step if joint is None else step @ joint
        yield TokenMaps(joint[:, 0], joint[:, 0])


def grad_eclip(blocks: Sequence[BlockTensors]) -> Iterator[TokenMaps]:
    """Grad-ECLIP: λ_i Σ_c w_c v_ic, w = ∂score/∂O of the CLS token, λ_i its likeness to key i (Zhao et al. 2025).

    λ is the cosine of the CLS token's query and the key over all channels, min-max normalised over the other tokens: a
    looser weight than the softmax's, which all but a few tokens do without (arXiv 2502.18816, section 3).
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
    """Attention × gradient: mean over heads of P ⊙ ∂score/∂P in the CLS row (a block of Chefer et al. 2021, eq. 5)."""
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
