"""What a layer's name means: a block of the tower, read at a site, or any other module of it, by its output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..base.allowed import SITES
from ..base.errors import InputError, did_you_mean
from .recipe import ModuleLayer
from .towers import family_of
from .towers.tower import Tower

# Among layer names: the mean of the normalised maps of the other layers; the sum of the raw maps of all blocks; and the
# mean of the maps of `compared_blocks`, each scaled to unit deviation, sharpened (`engine.real.contrast`).
FUSED = "fused"
SUM = "sum"
SCALED = "scaled"
MADE_OF_OTHERS = (FUSED, SUM, SCALED)
BLOCK_STEP, FEWEST_BLOCKS = 3, 12  # every third block is compared, where there are so many: all point no better

# What may stand before the tower's own names in a checkpoint, in DDP, in transformers 4 or in torch.compile.
TOWER_PREFIXES = ("module.", "backbone.", "vision_model.", "_orig_mod.")


class LayerError(InputError):
    """A layer that cannot be explained: unknown, without patch tokens, or without influence on the score."""


@dataclass(frozen=True, slots=True)
class Site:
    """One point of the tower at which tokens and their gradients are read."""

    name: str  # the layer as the caller wrote it
    module: nn.Module
    reads_input: bool  # tokens are what the module reads (True) or what it returns (False)
    batch_axis: int | None = 0  # 0 of (B, T, C), 1 of (T, B, C), None where sizes have to tell
    may_be_4d: bool = False  # then it is followed which axis holds the channels
    norm_epsilon: float = 0.0  # ε of the norm through which a block reads the tokens
    run: int = 1  # which of the module's runs in a forward pass is meant


def block_names(tower: nn.Module) -> list[str]:
    """Names of the encoder blocks of `tower`, first to last: `encoder.layers.0`, ...; none for a CNN."""
    return family_of(tower).block_names(tower)


def named_layers(layers: Sequence[str]) -> list[str]:
    """The layers that are modules. Raises InputError where `fused` has fewer than two of them to fuse."""
    named = [layer for layer in layers if layer not in MADE_OF_OTHERS]
    if FUSED in layers and len(set(named)) < 2:
        raise InputError(f"layer {FUSED!r} is the mean of the other layers' maps: name at least two beside it")
    return named


def summed_blocks(tower: Tower, layer: str) -> tuple[str, ...]:
    """The blocks whose maps `sum` or `scaled` is made of; none for another layer. Raises LayerError without blocks."""
    if layer not in (SUM, SCALED):
        return ()
    if not tower.blocks:
        raise LayerError(
            f"layer {layer!r} adds the maps of a transformer's blocks, which share one grid and one stream of tokens;"
            f" {type(tower.module).__name__} has no such blocks: name its layers, and {FUSED!r} for their mean",
            "layers",
        )
    return tower.blocks if layer == SUM else compared_blocks(tower)


def compared_blocks(tower: Tower) -> tuple[str, ...]:
    """The blocks whose tokens are compared with real ones: every third one, or all of few, but the last.

    The plain gradient there is at right angles to the tokens (`recipe.site_of`).
    """
    depth = len(tower.blocks)
    return tower.blocks[1:-1:BLOCK_STEP] if depth >= FEWEST_BLOCKS else tower.blocks[:-1] or tower.blocks


def exchanged_block(tower: Tower) -> str:
    """The compared block nearest to a third of the depth, at whose input patches are exchanged for real ones."""
    third = len(tower.blocks) / 3
    return min(compared_blocks(tower), key=lambda block: abs(tower.blocks.index(block) - third))


def site_of_layer(tower: Tower, layer: str, site: str) -> Site:
    """The point of `tower` that a layer's name means; a block's name means what that block reads, at `site`.

    Raises LayerError for a name the tower does not have, with the closest ones, and InputError for an unknown site.
    """
    if site not in SITES:
        raise InputError(f"site {site!r} is unknown; {did_you_mean(str(site), SITES)}allowed: {', '.join(SITES)}")
    return tower.once((layer, site), lambda: _site(tower, layer, site))


def _site(tower: Tower, layer: str, site: str) -> Site:
    name = name_in_tower(tower, layer)
    module, axis = tower.named[name], tower.batch_axis(name)
    if name not in tower.blocks:
        return Site(layer, module, False, axis, may_be_4d=True)
    may_be_4d, norm = not tower.family.blocks_give_tokens, tower.first_norm(name)
    if site == "residual" or norm is None:
        return Site(layer, module, True, axis, may_be_4d, float(getattr(norm, "eps", 0.0)))
    return Site(layer, norm, False, axis, may_be_4d)


def name_in_tower(tower: Tower, layer: str) -> str:
    """`layer` relative to the tower, without TOWER_PREFIXES; a number is a block's, -1 the last one's.

    Raises LayerError.
    """
    return tower.once(layer, lambda: _name_in_tower(tower, layer))


def _name_in_tower(tower: Tower, layer: str) -> str:
    names = tower.named
    if isinstance(layer, ModuleLayer):
        found = next((name for name, module in names.items() if module is layer.module and name), None)
        if found is None:
            kind = type(layer.module).__name__
            raise LayerError(f"the {kind} given as a layer is no module of the detector's tower: name it", "layers")
        return found
    name, path = str(layer), tower.path
    while path and name not in names:  # the whole path, or the end of it: names may begin at a model inside
        if name.startswith(f"{path}."):
            name = name[len(path) + 1 :]
            break
        path = path.partition(".")[2]
    while name not in names and name.startswith(TOWER_PREFIXES):
        name = name.partition(".")[2]
    if name not in names and f"backbone.{name}" in names:  # where the tower is the detector itself
        name = f"backbone.{name}"
    if name and name in names:
        return name
    blocks = tower.blocks
    if re.fullmatch("-?[0-9]{1,4}", layer) and -len(blocks) <= int(layer) < len(blocks):
        return blocks[int(layer)]
    known = f"its encoder blocks are {blocks[0]} ... {blocks[-1]}" if blocks else "it has no encoder blocks"
    raise LayerError(f"layer {layer!r} is not in the detector's tower; {did_you_mean(name, names)}{known}", "layers")
