"""Read the tower's attention in one pass, for the methods of `attention_methods`.

Fast attention kernels never form the probabilities P = softmax(q kᵀ / √d), and the forward pass stays unchanged here.
The code recomputes P from the kept queries and keys. The gradient of P does not need P: a head's output is O = P V, so
∂score/∂P = (∂score/∂O) Vᵀ, and O is the input of the block's output projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .attention_methods import ATTENTION_METHODS, OUTPUT_GRADIENT, AttentionMethod, BlockTensors, TokenMaps
from .layers import LayerError, Site, name_in_tower
from .towers.attention import MIXED, BlockAttention, Keep
from .towers.tower import Tower


class Attention(NamedTuple):
    """The attention of an encoder block, with the block's name in the tower."""

    block: str
    modules: BlockAttention


class BlockProjection(NamedTuple):
    """The key for a block's queries, keys or values ("q", "k", "v")."""

    block: str
    projection: str


@dataclass(frozen=True)
class AttentionPass:
    """What a pass must read from the tower's attention for some layers and methods."""

    explained: Mapping[str, Attention]  # layer as the caller wrote it → its block
    read: Sequence[Attention]  # blocks with kept projections: the explained ones, or all up to the last of them
    projections: tuple[str, ...]
    differentiated: Sequence[Attention]  # blocks that need ∂score/∂O

    @classmethod
    def of(cls, tower: Tower, layers: Sequence[str], methods: Sequence[str]) -> AttentionPass:
        """Return what attention `methods` need. Raises LayerError for a layer without readable attention."""
        wanted = [ATTENTION_METHODS[method] for method in methods]
        if not wanted:
            return cls({}, [], (), [])
        explained = {layer: _attention(tower, layer) for layer in layers}
        read: Sequence[Attention] = list(dict.fromkeys(explained.values()))
        if any(method.every_block for method in wanted):
            last = max(tower.blocks.index(block) for block, _ in read)
            read = [_attention(tower, block) for block in tower.blocks[: last + 1]]
        projections = tuple(dict.fromkeys(name for method in wanted for name in method.projections))
        gradients = any(method.needs_output_gradient for method in wanted)
        return cls(explained, read, projections, list(dict.fromkeys(explained.values())) if gradients else [])

    def output_sites(self) -> list[Site]:
        """Return the sites whose gradients give ∂score/∂O of the `differentiated` blocks."""
        return [
            Site(f"{block}.out_proj", *modules.output, batch_axis=int(modules.tokens_first))
            for block, modules in self.differentiated
        ]

    def output_gradients(self, tokens: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return ∂score/∂O (B, T, C) by block, from activation and gradient at each of `output_sites`."""
        return {
            block: modules.output_gradient(gradient)
            for (block, modules), (_, gradient) in zip(self.differentiated, tokens, strict=True)
        }

    @contextmanager
    def kept(self) -> Iterator[dict[BlockProjection, Tensor]]:
        """Keep detached queries, keys and values of a forward pass. Raises LayerError if a block runs twice."""
        kept: dict[BlockProjection, Tensor] = {}

        def keep_of(block: str) -> Keep:
            def keep(name: str, tensor: Tensor) -> None:
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
        """Check that each block computed softmax(q kᵀ / √d) v. Raises LayerError, e.g. for an unknown mask or bias."""
        errors = []
        for block, modules in self.read:
            if BlockProjection(block, "q") not in kept:
                raise LayerError(f"layer {block!r} does not run in the detector's forward pass: name another")
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
    images: int,
) -> dict[str, TokenMaps]:
    """Compute each explained layer's maps by `method`, for `images` images. `output_gradients`: ∂score/∂O by block.

    Raises LayerError if blocks have different tokens, or not one set of tokens per image.
    """
    _refuse_other_tokens(projections, images)

    def tensors(block: Attention) -> BlockTensors:
        kept = {name: projections[BlockProjection(block.block, name)] for name in method.projections}
        if method.needs_output_gradient:
            kept[OUTPUT_GRADIENT] = output_gradients[block.block]
        return BlockTensors(block.modules.heads, kept)

    blocks = attention.read if method.every_block else list(dict.fromkeys(attention.explained.values()))
    with torch.autocast(next(iter(projections.values())).device.type, enabled=False):
        maps = dict(zip(blocks, method.maps([tensors(block) for block in blocks]), strict=True))
    return {layer: maps[block] for layer, block in attention.explained.items()}


def _refuse_other_tokens(projections: Mapping[BlockProjection, Tensor], images: int) -> None:
    counts = {key.block: tensor.shape[:2] for key, tensor in projections.items()}
    first, (_, usual) = next(iter(counts.items()))
    for block, (batch, tokens) in counts.items():
        if batch != images:
            raise LayerError(
                f"layer {block!r} attends within {batch} sets of tokens for {images} images: it works on parts of an"
                " image (windows), or on several views of it"
            )
        if tokens != usual:
            raise LayerError(
                f"layer {block!r} attends over {tokens} tokens, {first!r} over {usual}: tokens were merged, dropped or"
                " added between them, so they do not lie on the image alike; name a block before that"
            )


def has_attention(tower: Tower, layers: Sequence[str]) -> bool:
    """True if all of `layers` are blocks with readable attention."""
    try:
        return all(_attention(tower, layer) for layer in layers)
    except LayerError:
        return False


def _attention(tower: Tower, layer: str) -> Attention:
    block = name_in_tower(tower, layer)
    modules = tower.attention(block) if block in tower.blocks else None
    if modules is None:
        raise LayerError(
            f"layer {layer!r} has no attention to read: {' and '.join(ATTENTION_METHODS)} need a transformer block in"
            " which each token attends to all, with queries, keys and values that the tower's family can read (CLIP's"
            " q_proj, k_proj and v_proj, timm's qkv, nn.MultiheadAttention); use gradcam or layercam for other layers"
        )
    return Attention(block, modules)
