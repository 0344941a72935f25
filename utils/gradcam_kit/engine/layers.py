"""What a layer's name means: a block of the tower, read at a site, or any other module of it, by its output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..base.allowed import SITES
from ..base.errors import InputError, did_you_mean
from .towers import family_of

# Among layer names: the mean of the normalised maps of the other layers, and the sum of the raw maps of all blocks.
FUSED = "fused"
SUM = "sum"

# What may stand before the tower's own names in a checkpoint, in DDP, in transformers 4 or in torch.compile.
TOWER_PREFIXES = ("module.", "backbone.", "vision_model.", "_orig_mod.")


class LayerError(InputError):
    """A layer that cannot be explained: unknown, without patch tokens, or without influence on the score."""


class Site(NamedTuple):
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


def as_names(layers: str | int | Sequence[str | int]) -> list[str]:
    """Layers as a caller may give them, one alone or several, names or numbers of blocks, as a list of strings."""
    return [str(layer) for layer in ([layers] if isinstance(layers, (str, int)) else layers)]


def named_layers(layers: Sequence[str]) -> list[str]:
    """The layers that are modules. Raises InputError where `fused` has fewer than two of them to fuse."""
    named = [layer for layer in layers if layer not in (FUSED, SUM)]
    if FUSED in layers and len(set(named)) < 2:
        raise InputError(f"layer {FUSED!r} is the mean of the other layers' maps: name at least two beside it")
    return named


def summed_blocks(tower: nn.Module, layers: Sequence[str]) -> list[str]:
    """The blocks that `sum` adds, all of the tower's; none where it is not among `layers`. Raises LayerError."""
    if SUM not in layers:
        return []
    blocks = block_names(tower)
    if not blocks:
        raise LayerError(
            f"layer {SUM!r} adds the maps of a transformer's blocks, which share one grid and one stream of tokens;"
            f" {type(tower).__name__} has no such blocks: name its layers, and {FUSED!r} for their mean",
            "layers",
        )
    return blocks


def find_sites(tower: nn.Module, layers: Sequence[str], site: str = "layer_norm1", path: str = "") -> list[Site]:
    """The points of `tower` that `layers` name. A block's name means what that block reads, at `site`.

    `path`: the tower's own name in the model, which may stand before a layer's. Raises LayerError for a name the tower
    does not have, with the closest ones, and InputError for an unknown site.
    """
    if site not in SITES:
        raise InputError(f"site {site!r} is unknown; {did_you_mean(site, SITES)}allowed: {', '.join(SITES)}")
    names = {layer: name_in_tower(tower, layer, path) for layer in layers}
    family = family_of(tower)
    blocks = set(family.block_names(tower))
    sites = []
    for layer, name in names.items():
        module = tower.get_submodule(name)
        axis = family.batch_axis(tower, name)
        if name not in blocks:
            sites.append(Site(layer, module, False, axis, may_be_4d=True))
        elif site == "residual":
            epsilon = float(getattr(family.first_norm(module), "eps", 0.0))
            sites.append(Site(layer, module, True, axis, not family.blocks_give_tokens, epsilon))
        else:
            sites.append(Site(layer, family.first_norm(module), False, axis, not family.blocks_give_tokens))
    return sites


def name_in_tower(tower: nn.Module, layer: str, path: str = "") -> str:
    """`layer` relative to the tower, without the prefixes of `find_sites`; a number is a block's, -1 the last one's.

    Raises LayerError.
    """
    name = layer
    while path and not _has(tower, name):  # the whole path, or the end of it: names may begin at a model inside
        if name.startswith(f"{path}."):
            name = name[len(path) + 1 :]
            break
        path = path.partition(".")[2]
    while not _has(tower, name) and name.startswith(TOWER_PREFIXES):
        name = name.partition(".")[2]
    if not _has(tower, name) and _has(tower, f"backbone.{name}"):  # where the tower is the detector itself
        name = f"backbone.{name}"
    if name and _has(tower, name):
        return name
    blocks, modules = block_names(tower), dict(tower.named_modules())
    if re.fullmatch("-?[0-9]{1,4}", layer) and -len(blocks) <= int(layer) < len(blocks):
        return blocks[int(layer)]
    named = f"its encoder blocks are {blocks[0]} ... {blocks[-1]}" if blocks else "it has no encoder blocks"
    raise LayerError(f"layer {layer!r} is not in the detector's tower; {did_you_mean(name, modules)}{named}", "layers")


def _has(tower: nn.Module, name: str) -> bool:
    """Whether `name` leads to a module of `tower`; the empty one leads to itself."""
    module: nn.Module | None = tower
    for part in name.split(".") if name else ():
        module = module._modules.get(part) if module is not None else None
    return module is not None
