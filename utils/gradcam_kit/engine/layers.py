"""Layer names: a block of the tower, read at a site, or any other module of it, read at its output."""

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

# Layer names for combined maps: the mean of the other layers' normalised maps; the sum of all blocks' raw maps; and the
# mean of the maps of `compared_blocks`, each scaled to unit deviation, then sharpened (`engine.real.contrast`).
FUSED = "fused"
SUM = "sum"
SCALED = "scaled"
MADE_OF_OTHERS = (FUSED, SUM, SCALED)
BLOCK_STEP, FEWEST_BLOCKS = 3, 12  # every third block, if there are enough: all are no better

# Prefixes before the tower's own names, from checkpoints, DDP, transformers 4 or torch.compile.
TOWER_PREFIXES = ("module.", "backbone.", "vision_model.", "_orig_mod.")


class LayerError(InputError):
    """Raised for a layer without an explanation: unknown, without patch tokens, or without influence on the score."""


@dataclass(frozen=True, slots=True)
class Site:
    """A point of the tower where tokens and their gradients are read."""

    name: str  # the layer as the caller wrote it
    module: nn.Module
    reads_input: bool  # tokens are the module's input (True) or its output (False)
    batch_axis: int | None = 0  # 0 for (B, T, C), 1 for (T, B, C), None: the sizes decide
    may_be_4d: bool = False  # then the code follows which axis holds the channels
    norm_epsilon: float = 0.0  # ε of the norm through which a block reads the tokens
    run: int = 1  # the index of the module's run in a forward pass


def block_names(tower: nn.Module) -> list[str]:
    """Return the names of the encoder blocks of `tower` in order: `encoder.layers.0`, ...; none for a CNN."""
    return family_of(tower).block_names(tower)


def named_layers(layers: Sequence[str]) -> list[str]:
    """Return the layers that are modules. Raises InputError if `fused` has fewer than two to fuse."""
    named = [layer for layer in layers if layer not in MADE_OF_OTHERS]
    if FUSED in layers and len(set(named)) < 2:
        raise InputError(f"layer {FUSED!r} is the mean of the other layers' maps: name at least two others")
    return named


def summed_blocks(tower: Tower, layer: str) -> tuple[str, ...]:
    """Return the blocks that `sum` or `scaled` combines; none for other layers. Raises LayerError without blocks."""
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
    """Return the blocks whose tokens are compared with real ones: every third, or all if few, but never the last.

    At the last block, the plain gradient is orthogonal to the tokens (`recipe.site_of`).
    """
    depth = len(tower.blocks)
    return tower.blocks[1:-1:BLOCK_STEP] if depth >= FEWEST_BLOCKS else tower.blocks[:-1] or tower.blocks


def exchanged_block(tower: Tower) -> str:
    """Return the compared block nearest to a third of the depth; the exchange replaces patches at its input."""
    third = len(tower.blocks) / 3
    return min(compared_blocks(tower), key=lambda block: abs(tower.blocks.index(block) - third))


def site_of_layer(tower: Tower, layer: str, site: str) -> Site:
    """Return the point of `tower` that a layer name means; a block's name means its input at `site`.

    Raises LayerError for an unknown name, with the closest ones, and InputError for an unknown site.
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
    """Return `layer` relative to the tower, without TOWER_PREFIXES; a number means a block, -1 the last.

    Raises LayerError.
    """
    return tower.once(layer, lambda: _name_in_tower(tower, layer))


def _name_in_tower(tower: Tower, layer: str) -> str:
    names = tower.named
    if isinstance(layer, ModuleLayer):
        found = next((name for name, module in names.items() if module is layer.module and name), None)
        if found is None:
            kind = type(layer.module).__name__
            raise LayerError(
                f"the {kind} given as a layer is not a module of the detector's tower: give its name", "layers"
            )
        return found
    name, path = str(layer), tower.path
    while path and name not in names:  # the whole path or its end: names may start at an inner model
        if name.startswith(f"{path}."):
            name = name[len(path) + 1 :]
            break
        path = path.partition(".")[2]
    while name not in names and name.startswith(TOWER_PREFIXES):
        name = name.partition(".")[2]
    if name not in names and f"backbone.{name}" in names:  # if the tower is the detector itself
        name = f"backbone.{name}"
    if name and name in names:
        return name
    blocks = tower.blocks
    if re.fullmatch("-?[0-9]{1,4}", layer) and -len(blocks) <= int(layer) < len(blocks):
        return blocks[int(layer)]
    known = f"its encoder blocks are {blocks[0]} ... {blocks[-1]}" if blocks else "it has no encoder blocks"
    raise LayerError(f"layer {layer!r} is not in the detector's tower; {did_you_mean(name, names)}{known}", "layers")
