"""The kinds of network that can be explained. A new kind is one file here and one line in FAMILIES."""

from __future__ import annotations

from torch import nn

from ...base.errors import InputError
from .attention import AttentionModules, BlockAttention
from .cnn import CNN
from .family import Grid, TowerFamily
from .hf_clip import HuggingFaceCLIP
from .hf_dinov3 import HuggingFaceDINOv3
from .hf_vit import HuggingFaceViT
from .openai_clip import OpenAICLIP
from .pre_norm import PreNormTransformer
from .swin import Swin
from .timm_vit import TimmViT
from .unknown import unknown_tower

# In this order: the special before the general; a transformer may hold convolutions too, for its patches.
FAMILIES: list[TowerFamily] = [
    HuggingFaceCLIP(),
    HuggingFaceViT(),
    HuggingFaceDINOv3(),
    OpenAICLIP(),
    Swin(),
    TimmViT(),
    PreNormTransformer(),
    CNN(),
]


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
    raise unknown_tower(tower, FAMILIES)


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
                " explain: explain one of them, with forward=… for the whole model"
            )
        if found:
            return unwrapped(next(iter(found.values())))
    raise unknown_tower(model, FAMILIES)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile, in whatever order they were put on."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, of torch 2
            model = model._orig_mod  # type: ignore[assignment]  # just seen to be a module
        else:
            return model


__all__ = [
    "FAMILIES",
    "AttentionModules",
    "BlockAttention",
    "Grid",
    "TowerFamily",
    "family_of",
    "find_tower",
    "register_tower",
    "unwrapped",
]
