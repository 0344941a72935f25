"""Find the tower to explain inside a model, and the family it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ...base.errors import InputError
from ...base.text import shortened
from .attention import AttentionModules, BlockAttention
from .families import CNN_FAMILY, HF_CLIP, HF_DINOV3, HF_VIT, OPENAI_CLIP, PRE_NORM, TIMM, Swin
from .family import Grid, TowerFamily
from .unusual import GMLP, HIERA

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Special families first; a transformer may contain convolutions too, for its patches.
FAMILIES: list[TowerFamily] = [HF_CLIP, HF_VIT, HF_DINOV3, OPENAI_CLIP, HIERA, Swin(), GMLP, TIMM, PRE_NORM, CNN_FAMILY]
PAGE = "docs/how_to/add_a_tower_family.md"


def register_tower(family: TowerFamily) -> None:
    """Register a family of networks for every call; it comes before those already registered.

    Raises InputError unless `family` is an instance of a `TowerFamily`.
    """
    if not isinstance(family, TowerFamily):
        raise InputError(f"{family!r} is not a TowerFamily: give an instance of a subclass")
    FAMILIES.insert(0, family)


def family_of(tower: nn.Module) -> TowerFamily:
    """Return the family of `tower`. Raises InputError if it has none."""
    for family in FAMILIES:
        if family.recognises(tower):
            return family
    raise _unknown_tower(tower)


def find_tower(model: nn.Module, layers: Sequence[str] = ()) -> nn.Module:
    """Find the tower inside `model`, or `model` itself; the outermost if towers are nested.

    If there are several side by side, it is the one that contains `layers`, given by their full paths. Raises
    InputError if there is no tower, if the choice is unclear, and for TorchScript.
    """
    _refuse_scripted(model)
    for family in FAMILIES:
        found: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
            if not inside and family.recognises(module):
                found[name] = module
        if family is PRE_NORM and _has_maps_before(model, found.values()):
            continue
        if len(found) > 1:
            found = _named(found, layers) or found
        if len(found) > 1 and family is PRE_NORM and all(PRE_NORM.patch_size(one) is None for one in found.values()):
            raise InputError(
                f"{type(model).__name__} is of no known family: it holds {len(found)} groups of blocks"
                f" ({shortened(', '.join(found))}), none of which cuts the image into patches, so the places of their"
                f" tokens are unknown; a short file can say them, see {PAGE}"
            )
        if len(found) > 1:
            raise InputError(
                f"{type(model).__name__} holds {len(found)} towers ({', '.join(found)}), and it is not clear which to"
                f" explain: name a layer by its full path, such as {next(iter(found))}.…, or explain one of them, with"
                " forward=… for the whole model"
            )
        if found:
            return unwrapped(next(iter(found.values())))
    raise _unknown_tower(model)


def _refuse_scripted(model: nn.Module) -> None:
    """Raise InputError for a network in TorchScript: what runs inside it calls no hooks."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and (not name or next(module.children(), None) is not None):
            what = f"{name} of {type(model).__name__}" if name else "the model"
            raise InputError(
                f"{what} is TorchScript, whose layers cannot be read: explain the Python model that it was made from,"
                " with its state_dict() as weights"
            )


def is_clear(model: nn.Module) -> bool:
    """True if `find_tower` needs no layers."""
    try:
        return find_tower(model) is not None
    except InputError:
        return False


def _named(towers: dict[str, nn.Module], layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return the one of `towers` that contains all `layers`, by path or as modules; {} otherwise."""
    for name, tower in towers.items():
        own = set(tower.modules())
        if layers and all(getattr(layer, "module", None) in own or layer.startswith(f"{name}.") for layer in layers):
            return {name: tower}
    return {}


def _has_maps_before(model: nn.Module, towers: Iterable[nn.Module]) -> bool:
    """True if these transformers read maps of a convolutional network: none of them cuts the image into patches."""
    return CNN_FAMILY.recognises(model) and all(PRE_NORM.patch_size(tower) is None for tower in towers)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside training wrappers (WRAPPERS, torch.compile), in any order."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, of torch 2
            model = model._orig_mod  # type: ignore[assignment]  # just seen to be a module
        else:
            return model


def _unknown_tower(module: nn.Module) -> InputError:
    """Return an error that names the blocks that look like a transformer's, what they lack, and the known families."""
    found = next(_repeated_blocks(module), None)
    known = "; ".join(f"{family.name} ({family.signs})" for family in FAMILIES)
    if found is None:
        seen = "no repeated blocks with an attention were found, nor a convolution whose windows overlap"
    else:
        name, count, block = found
        parts = ", ".join(part for part, _ in block.named_children())
        seen = (
            f"{count} blocks {name}.0 ... {name}.{count - 1} ({type(block).__name__} with {parts}) were found, but no"
            " norm by a known name before their attention"
        )
        if isinstance(block, nn.TransformerEncoderLayer):
            seen = f"{count} blocks {name}.0 ... {name}.{count - 1} were found, whose norms come after their attention"
    return InputError(
        f"{type(module).__name__} holds no network of a known family: {seen}. Known are: {known}."
        f" Another one is a short file in utils/gradcam_kit/engine/towers/, see {PAGE}"
    )


def _repeated_blocks(module: nn.Module) -> Iterator[tuple[str, int, nn.Module]]:
    """Yield name, length and first entry of each list of modules of one class that contain an attention."""
    for name, inner in module.named_modules():
        if isinstance(inner, (nn.ModuleList, nn.Sequential)) and len(inner):
            same = {type(block) for block in inner}
            if len(same) == 1 and any("att" in part.lower() for part, _ in inner[0].named_modules()):
                yield name, len(inner), inner[0]


__all__ = [
    "FAMILIES",
    "AttentionModules",
    "BlockAttention",
    "Grid",
    "TowerFamily",
    "family_of",
    "find_tower",
    "is_clear",
    "register_tower",
    "unwrapped",
]
