"""Maps from a block's attention: LeGrad, Grad-ECLIP, attention × gradient, and attention rollout, which knows no class.

Fast attention kernels never form the probabilities P = softmax(q kᵀ / √d), and nothing here makes them: the forward
pass stays exactly what it is. P is computed once more from the kept queries and keys. Its gradient needs no P at all:
a head's output is O = P V, so ∂score/∂P = (∂score/∂O) Vᵀ, and O is what the block's output projection reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import LayerError, Site, name_in_tower
from .towers import BlockAttention, family_of
from .towers.attention import MIXED, Keep, probabilities

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


# ---------------------------------------------------------------------------------------------------------- one pass


class Attention(NamedTuple):
    """The attention of one encoder block, by the block's name in the tower."""

    block: str
    modules: BlockAttention


class BlockProjection(NamedTuple):
    """Key of a block's queries, keys or values ("q", "k", "v")."""

    block: str
    projection: str


@dataclass(frozen=True)
class AttentionPass:
    """What one pass has to read of the tower's attention, for some layers and methods."""

    explained: Mapping[str, Attention]  # layer as the caller wrote it → its block
    read: Sequence[Attention]  # whose projections are kept: the explained blocks, or all up to the last of them
    projections: tuple[str, ...]
    differentiated: Sequence[Attention]  # for which ∂score/∂O is needed

    @classmethod
    def of(cls, tower: nn.Module, layers: Sequence[str], methods: Sequence[str], path: str = "") -> AttentionPass:
        """What those of `methods` that read attention need. Raises LayerError for a layer without attention to read."""
        wanted = [ATTENTION_METHODS[method] for method in methods if method in ATTENTION_METHODS]
        if not wanted:
            return cls({}, [], (), [])
        explained = {layer: _attention(tower, layer, path) for layer in layers}
        read: Sequence[Attention] = list(dict.fromkeys(explained.values()))
        if any(method.every_block for method in wanted):
            read = _up_to_the_last(tower, read)
        projections = tuple(dict.fromkeys(name for method in wanted for name in method.projections))
        gradients = any(method.needs_output_gradient for method in wanted)
        return cls(explained, read, projections, list(dict.fromkeys(explained.values())) if gradients else [])

    def output_sites(self) -> list[Site]:
        """Where the engine reads the gradient that ∂score/∂O of the `differentiated` blocks follows from."""
        return [
            Site(f"{block}.out_proj", *modules.output, batch_axis=int(modules.tokens_first))
            for block, modules in self.differentiated
        ]

    def output_gradients(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """∂score/∂O (B, T, C) by block, from the gradients at `output_sites`."""
        return {
            block: modules.output_gradient(gradient)
            for (block, modules), gradient in zip(self.differentiated, gradients, strict=True)
        }

    @contextmanager
    def kept(self) -> Iterator[dict[BlockProjection, Tensor]]:
        """Queries, keys and values during the forward pass, detached. Raises LayerError for a block that runs twice."""
        kept: dict[BlockProjection, Tensor] = {}
        thread = threading.get_ident()

        def keep_of(block: str) -> Keep:
            def keep(name: str, tensor: Tensor) -> None:
                if threading.get_ident() != thread:
                    return
                key = BlockProjection(block, name)
                if key in kept:
                    raise LayerError(
                        f"layer {block!r} runs more than once in one forward pass: name one that runs once"
                    )
                kept[key] = tensor

            return keep

        names = self.projections
        if {"q", "k"} <= set(names):
            names = tuple(dict.fromkeys((*names, "v", MIXED)))
        with ExitStack() as hooks:
            for block, modules in self.read:
                for handle in modules.watch(names, keep_of(block)):
                    hooks.callback(handle.remove)
            yield kept
        if MIXED in names:
            self._check_probabilities(kept)

    def _check_probabilities(self, kept: dict[BlockProjection, Tensor]) -> None:
        """That softmax(q kᵀ / √d) v is what each block has mixed. Raises LayerError: a mask or bias is unknown."""
        errors = []
        for block, modules in self.read:
            tensors = {name: kept[BlockProjection(block, name)] for name in ("q", "k", "v")}
            mixed = kept.pop(BlockProjection(block, MIXED))
            of_block = BlockTensors(modules.heads, tensors)
            dtype = torch.promote_types(mixed.dtype, torch.float32)
            with torch.no_grad(), torch.autocast(mixed.device.type, enabled=False):
                found = modules.project((of_block.probabilities() @ of_block.by_head("v")).transpose(1, 2).flatten(2))
                errors.append((found.to(dtype) - mixed.to(dtype)).abs().amax() / mixed.to(dtype).abs().amax())
            coarse = mixed.dtype in (torch.float16, torch.bfloat16)
        for (block, _), error in zip(self.read, torch.stack(errors).tolist(), strict=True):
            if error > (0.1 if coarse else 1e-3):
                raise LayerError(
                    f"layer {block!r} does not attend by softmax(q kᵀ / √d) alone: the tower's family knows of no mask,"
                    " bias or other scale; use gradcam or legrad, or write a tower family"
                )


def attention_token_maps(
    method: AttentionMethod,
    attention: AttentionPass,
    projections: Mapping[BlockProjection, Tensor],
    output_gradients: Mapping[str, Tensor],
) -> dict[str, TokenMaps]:
    """The maps of each explained layer by `method`. `output_gradients`: ∂score/∂O by block."""

    def tensors(block: Attention) -> BlockTensors:
        kept = {name: projections[BlockProjection(block.block, name)] for name in method.projections}
        if method.needs_output_gradient:
            kept[OUTPUT_GRADIENT] = output_gradients[block.block]
        return BlockTensors(block.modules.heads, kept)

    blocks = attention.read if method.every_block else list(dict.fromkeys(attention.explained.values()))
    with torch.autocast(next(iter(projections.values())).device.type, enabled=False):
        maps = dict(zip(blocks, method.maps([tensors(block) for block in blocks]), strict=True))
    return {layer: maps[block] for layer, block in attention.explained.items()}


def has_attention(tower: nn.Module, layers: Sequence[str], path: str = "") -> bool:
    """Whether all of `layers` are blocks whose attention can be read."""
    try:
        return all(_attention(tower, layer, path) for layer in layers)
    except LayerError:
        return False


def _attention(tower: nn.Module, layer: str, path: str) -> Attention:
    family, block = family_of(tower), name_in_tower(tower, layer, path)
    is_block = block in family.block_names(tower)
    modules = family.attention(tower.get_submodule(block)) if is_block else None
    if modules is None:
        raise LayerError(
            f"layer {layer!r} has no attention to read: {' and '.join(ATTENTION_METHODS)} take blocks of a transformer"
            " in which each token attends to all, with queries, keys and values that the tower's family knows to read"
            " (CLIP's q_proj, k_proj and v_proj, timm's qkv, nn.MultiheadAttention); use gradcam or layercam for others"
        )
    return Attention(block, modules)


def _up_to_the_last(tower: nn.Module, attention: Sequence[Attention]) -> list[Attention]:
    """Every block from the first one to the last of `attention`."""
    names = family_of(tower).block_names(tower)
    last = max(names.index(block) for block, _ in attention)
    return [_attention(tower, name, "") for name in names[: last + 1]]
