"""The kinds of network that can be explained: which of them a model is, or holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

from ...base.errors import InputError
from .attention import AttentionModules, BlockAttention
from .families import CNN_FAMILY, FAMILIES, PRE_NORM
from .family import Grid, TowerFamily

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
PAGE = "docs/how_to/add_a_tower_family.md"


def register_tower(family: TowerFamily) -> None:
    """Make a kind of network known to every call, before those that are known already.

    Raises InputError for anything but an instance of a `TowerFamily`.
    """
    if not isinstance(family, TowerFamily):
        raise InputError(f"{family!r} is no TowerFamily: give an instance of a class made from it")
    FAMILIES.insert(0, family)


def family_of(tower: nn.Module) -> TowerFamily:
    """The family that `tower` itself belongs to. Raises InputError where it belongs to none."""
    for family in FAMILIES:
        if family.recognises(tower):
            return family
    raise _unknown_tower(tower)


def find_tower(model: nn.Module, layers: Sequence[str] = ()) -> nn.Module:
    """The tower inside `model`, which may be `model` itself; of nested ones the outermost.

    Of several side by side it is the one that `layers` lie in, where their names are full paths. Raises InputError
    where there is none, or where it is not clear which is meant.
    """
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
        if len(found) > 1:
            raise InputError(
                f"{type(model).__name__} holds {len(found)} towers ({', '.join(found)}), and it is not clear which to"
                f" explain: name a layer by its full path, such as {next(iter(found))}.…, or explain one of them, with"
                " forward=… for the whole model"
            )
        if found:
            return unwrapped(next(iter(found.values())))
    raise _unknown_tower(model)


def is_clear(model: nn.Module) -> bool:
    """Whether `find_tower` needs no layers."""
    try:
        return find_tower(model) is not None
    except InputError:
        return False


def _named(towers: dict[str, nn.Module], layers: Sequence[str]) -> dict[str, nn.Module]:
    """The one of `towers` that every one of `layers` lies in, by its path or as a module; {} otherwise."""
    for name, tower in towers.items():
        own = set(tower.modules())
        if layers and all(getattr(layer, "module", None) in own or layer.startswith(f"{name}.") for layer in layers):
            return {name: tower}
    return {}


def _has_maps_before(model: nn.Module, towers: Iterable[nn.Module]) -> bool:
    """Whether what these transformers read are the maps of a convolutional network: none of them cuts the image."""
    return CNN_FAMILY.recognises(model) and all(PRE_NORM.patch_size(tower) is None for tower in towers)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of training, in whatever order they were put on: WRAPPERS and torch.compile."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, of torch 2
            model = model._orig_mod  # type: ignore[assignment]  # just seen to be a module
        else:
            return model


def _unknown_tower(module: nn.Module) -> InputError:
    """The error that names the blocks which look like a transformer's, what they lack, and what is known."""
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
    """Name, length and first entry of lists of modules of one class that hold an attention."""
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
