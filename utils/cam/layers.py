"""What a layer's name means: a block of the tower, read at a site, or any module of it, by its output."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

from torch import nn

from utils.errors import InputError, did_you_mean

SITES = ("layer_norm1", "residual")

# The first norm of a pre-norm encoder block, as CLIP, Hugging Face's ViT and timm name it.
FIRST_NORMS = ("layer_norm1", "layernorm_before", "norm1")
# Whatever stands before the tower's own names in a checkpoint, in DDP or in transformers 4.
TOWER_PREFIXES = ("module.", "backbone.", "vision_model.")


class LayerError(InputError):
    """A layer that cannot be explained: unknown, without patch tokens, or without influence on the score."""


class Site(NamedTuple):
    """One point of the tower at which tokens and their gradients are read."""

    name: str  # as the caller wrote it
    module: nn.Module
    reads_input: bool  # tokens are what the module reads (True) or what it returns (False)


def block_names(tower: nn.Module) -> list[str]:
    """Names of the encoder blocks of `tower`, first to last: `encoder.layers.0`, ..."""
    return [name for name, module in tower.named_modules() if _first_norm(module) is not None]


def find_sites(tower: nn.Module, layers: Sequence[str], site: str = "layer_norm1") -> list[Site]:
    """The points of `tower` that `layers` name. A block's name means what that block reads, at `site`.

    Raises LayerError for a name the tower does not have, with the closest ones, and InputError for an unknown site.
    """
    if site not in SITES:
        raise InputError(f"site {site!r} is unknown; {did_you_mean(site, SITES)}allowed: {', '.join(SITES)}")
    modules = dict(tower.named_modules())
    blocks = block_names(tower)
    return [_find_site(modules, name, site, blocks) for name in dict.fromkeys(layers)]


def _find_site(modules: Mapping[str, nn.Module], name: str, site: str, blocks: Sequence[str]) -> Site:
    inner = name
    while inner not in modules and inner.startswith(TOWER_PREFIXES):
        inner = inner.partition(".")[2]
    if not inner or inner not in modules:
        named = f"its encoder blocks are {blocks[0]} ... {blocks[-1]}" if blocks else "it has no encoder blocks"
        raise LayerError(
            f"layer {name!r} is not in the detector's tower; {did_you_mean(inner, modules)}{named}"
            " (--list_layers prints every name)"
        )
    module = modules[inner]
    norm = _first_norm(module)
    if norm is None:
        return Site(name, module, reads_input=False)
    if site == "residual":
        return Site(name, module, reads_input=True)
    return Site(name, norm, reads_input=False)


def _first_norm(module: nn.Module) -> nn.Module | None:
    return next((child for name, child in module.named_children() if name in FIRST_NORMS), None)
