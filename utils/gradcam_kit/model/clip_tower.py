"""Builds the CLIP vision tower that a config asks for: from the hub, from a folder, or from its architecture alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..base.errors import InputError, did_you_mean
from ..base.text import one_line

DEFAULT_TOWER = "openai/clip-vit-large-patch14"


def _vit(
    width: int, blocks: int, heads: int, patch: int, pixels: int = 224, hidden: int | None = None
) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden or 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": pixels,
    }


_BASE_32, _BASE_16, _LARGE_14 = _vit(768, 12, 12, 32), _vit(768, 12, 12, 16), _vit(1024, 24, 16, 14)

# Published architectures, so that a detector whose weights come from its own checkpoint needs no network at all.
# OpenAI's were trained with QuickGELU, LAION's and DataComp's with GELU. No checkpoint shows which: see `hidden_act`.
KNOWN_TOWERS = {
    DEFAULT_TOWER: _LARGE_14,
    "openai/clip-vit-large-patch14-336": _vit(1024, 24, 16, 14, 336),
    "openai/clip-vit-base-patch16": _BASE_16,
    "openai/clip-vit-base-patch32": _BASE_32,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": _BASE_32,
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": _BASE_16,
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": _LARGE_14,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _vit(1280, 32, 16, 14),
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": _vit(1408, 40, 16, 14, hidden=6144),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": _vit(1664, 48, 16, 14, hidden=8192),
    "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K": _BASE_32,
    "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K": _vit(768, 12, 12, 32, 256),
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": _BASE_16,
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": _LARGE_14,
}


def hidden_act(name: str) -> str:
    """The activation that a published tower was trained with, as `CLIPVisionConfig.hidden_act` names it."""
    return "quick_gelu" if name.startswith("openai/") else "gelu"


def activation_of(model: nn.Module) -> str:
    """Which GELU the MLPs in `model` use ("quick_gelu", "gelu", ...); "" where there is none."""
    for module in model.modules():
        stated = getattr(getattr(module, "config", None), "hidden_act", None)
        if isinstance(stated, str):
            return stated
        if "GELU" in type(module).__name__:
            return "quick_gelu" if "QuickGELU" in type(module).__name__ else "gelu"
    return ""


def build_clip_tower(backbone_config: Mapping[str, Any], where: str = "backbone_config") -> nn.Module:
    """The vision tower (`embeddings`, `pre_layrnorm`, `encoder`, `post_layernorm`) that `backbone_config` describes.

    Keys: `name_or_path` (hub name or local folder, default `openai/clip-vit-large-patch14`), `architecture` (fields of
    `CLIPVisionConfig`; random weights, no download), `pretrained` (default: true unless `architecture` is given).
    The host's own keys beside them are left alone. Raises InputError, whose message begins with `where`.
    """
    architecture = backbone_config.get("architecture")
    pretrained = backbone_config.get("pretrained", architecture is None)
    name = backbone_config.get("name_or_path", DEFAULT_TOWER)
    _check_types(where, name, architecture, pretrained)
    if pretrained and architecture is not None:
        raise InputError(
            f"{where}: pretrained: true and architecture contradict each other; name the weights by name_or_path alone,"
            " or set pretrained: false"
        )
    if pretrained:
        return _unwrapped(_pretrained_tower(str(name), where))
    return _unwrapped(_random_tower(str(name), architecture, where))


def _check_types(where: str, name: object, architecture: object, pretrained: object) -> None:
    if not isinstance(pretrained, bool):
        raise InputError(f"{where}: pretrained is {pretrained!r}; allowed: true, false")
    if not isinstance(name, (str, Path)):
        raise InputError(f"{where}: name_or_path is {name!r}; allowed: a hub name or a local folder")
    if architecture is not None and not isinstance(architecture, Mapping):
        raise InputError(
            f"{where}: architecture is {architecture!r}; allowed: fields of CLIPVisionConfig as key: value"
        )


def _pretrained_tower(name: str, where: str) -> nn.Module:
    from transformers import CLIPVisionModel  # takes seconds to import

    try:
        loaded: Any = CLIPVisionModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}: the pretrained tower {name!r} could not be loaded ({one_line(error)}); give a local"
            " folder with config.json and model.safetensors as name_or_path, or a weights file of the whole detector"
            " (then nothing is downloaded)"
        ) from error
    tower, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise InputError(
            f"{where}: the weights of {name!r} lack {', '.join(missing[:10])}: not a complete CLIP vision tower"
        )
    return tower


def _random_tower(name: str, architecture: Mapping[str, Any] | None, where: str) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if architecture is not None:
        known = CLIPVisionConfig().to_dict()
        for key in architecture:
            if key not in known:
                raise InputError(
                    f"{where}: architecture.{key} is no field of CLIPVisionConfig; {did_you_mean(key, known)}"
                )
        fields = dict(architecture)
    elif name in KNOWN_TOWERS:
        fields = {**KNOWN_TOWERS[name], "hidden_act": hidden_act(name)}
    else:
        fields = _published_fields(name, where)
    try:
        return CLIPVisionModel(CLIPVisionConfig(**fields))
    except Exception as error:  # transformers 5 raises its own validation errors, 4 whatever the first layer meets
        raise InputError(f"{where}: no CLIP tower can be built from {fields}: {one_line(error)}") from error


def _published_fields(name: str, where: str) -> dict[str, Any]:
    from transformers import CLIPVisionConfig

    try:
        return CLIPVisionConfig.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}: the architecture of {name!r} could not be read ({one_line(error)}); known without a network:"
            f" {', '.join(KNOWN_TOWERS)}; for others give backbone_config.architecture or a local folder"
        ) from error


def _unwrapped(tower: nn.Module) -> nn.Module:
    """The tower itself: transformers 4 wraps it in one more module, transformers 5 does not."""
    return getattr(tower, "vision_model", tower)
