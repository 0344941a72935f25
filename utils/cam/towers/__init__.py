"""The kinds of network that can be explained. A new kind is one file here and one line in FAMILIES."""

from __future__ import annotations

from torch import nn

from utils.cam.towers.cnn import CNN
from utils.cam.towers.family import AttentionModules, Grid, TowerFamily
from utils.cam.towers.hf_clip import HuggingFaceCLIP
from utils.cam.towers.pre_norm import PreNormTransformer
from utils.errors import InputError

# In this order: the special before the general; a transformer may hold convolutions too, for its patches.
FAMILIES: tuple[TowerFamily, ...] = (HuggingFaceCLIP(), PreNormTransformer(), CNN())


def family_of(tower: nn.Module) -> TowerFamily:
    """The family that `tower` itself belongs to. Raises InputError where it belongs to none."""
    for family in FAMILIES:
        if family.recognises(tower):
            return family
    raise _unknown(tower)


def find_tower(model: nn.Module) -> nn.Module:
    """The tower inside `model`, which may be `model` itself; of nested ones the outermost.

    Raises InputError where there is none, or where there are several side by side.
    """
    for family in FAMILIES:
        found: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
            if not inside and family.recognises(module):
                found[name] = module
        if len(found) > 1:
            raise InputError(
                f"{type(model).__name__} holds {len(found)} towers ({', '.join(found)}), and it is not clear which to"
                " explain: call utils.gradcam.capture with one of them"
            )
        if found:
            return next(iter(found.values()))
    raise _unknown(model)


def _unknown(module: nn.Module) -> InputError:
    known = "; ".join(f"{family.name} ({family.signs})" for family in FAMILIES)
    return InputError(
        f"{type(module).__name__} holds no network of a known family. Known are: {known}."
        " Another one is a short file in utils/cam/towers/"
    )


__all__ = ["FAMILIES", "AttentionModules", "Grid", "TowerFamily", "family_of", "find_tower"]
