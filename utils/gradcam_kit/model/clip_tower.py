"""The CLIP vision tower: built from a config, or recognised in a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..base.errors import InputError, did_you_mean
from ..base.files import expanded
from ..base.text import one_line
from ..settings.config_values import backbone_config, with_numbers

DEFAULT_TOWER = "openai/clip-vit-large-patch14"
_SHAPE = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
_EMBEDDINGS = "backbone.embeddings."


def _vit(width: int, blocks: int, heads: int, patch: int, pixels: int = 224, hidden: int = 0) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": hidden or 4 * width, "image_size": pixels, "patch_size": patch}
    return {**sizes, "num_hidden_layers": blocks, "num_attention_heads": heads}


_BASE_32, _BASE_16, _LARGE_14 = _vit(768, 12, 12, 32), _vit(768, 12, 12, 16), _vit(1024, 24, 16, 14)

# Published architectures, so that a detector with its own checkpoint needs no network access. OpenAI's towers were
# trained with QuickGELU, LAION's and DataComp's with GELU; checkpoints do not record it: see `hidden_act`.
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
    """Return a published tower's activation, by its name in `CLIPVisionConfig.hidden_act`."""
    return "quick_gelu" if name.startswith("openai/") else "gelu"


def activation_of(model: nn.Module) -> str:
    """Return the GELU in the model's MLPs ("quick_gelu", "gelu", ...), or ""."""
    for module in model.modules():
        stated = getattr(getattr(module, "config", None), "hidden_act", None)
        if isinstance(stated, str):
            return stated
        if "GELU" in type(module).__name__:
            return "quick_gelu" if "QuickGELU" in type(module).__name__ else "gelu"
    return ""


def build_clip_tower(network: Mapping[str, Any], where: str = "backbone_config") -> nn.Module:
    """Build the vision tower that `network` describes. Raises InputError that begins with `where`.

    Keys: `name_or_path` (hub name or local folder, default `openai/clip-vit-large-patch14`), `architecture` (fields of
    `CLIPVisionConfig`; random weights, no download), `pretrained` (default: true unless `architecture` is given).
    """
    architecture = with_numbers(network.get("architecture"))  # YAML 1.1 reads layer_norm_eps: 1e-5 as text
    pretrained = network.get("pretrained", architecture is None)
    name = network.get("name_or_path", DEFAULT_TOWER)
    name = expanded(name) if isinstance(name, str) else name
    for key, value, kinds, allowed in (
        ("pretrained", pretrained, (bool,), "true, false"),
        ("name_or_path", name, (str, Path), "a hub name or a local folder"),
        ("architecture", architecture, (Mapping, type(None)), "fields of CLIPVisionConfig as key: value"),
    ):
        if not isinstance(value, kinds):
            raise InputError(f"{where}: {key} is {value!r}; allowed: {allowed}")
    if pretrained and architecture is not None:
        raise InputError(
            f"{where}: pretrained: true and architecture contradict each other; name the weights only by name_or_path,"
            " or set pretrained: false"
        )
    tower = _pretrained(str(name), where) if pretrained else _random(str(name), architecture, where)
    return getattr(tower, "vision_model", tower)  # transformers 4 wraps it in another module


def _pretrained(name: str, where: str) -> nn.Module:
    from transformers import CLIPVisionModel  # takes seconds to import

    try:
        loaded: Any = CLIPVisionModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}: the pretrained backbone {name!r} could not be loaded ({one_line(error)}); give a local"
            " folder with config.json and model.safetensors as name_or_path, or a weights file of the whole detector"
            " (then nothing is downloaded)"
        ) from error
    tower, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        names = ", ".join(missing[:10])
        raise InputError(f"{where}: the weights of {name!r} lack {names}: not a complete CLIP vision backbone")
    return tower


def _random(name: str, architecture: Mapping[str, Any] | None, where: str) -> nn.Module:
    """Build a random tower with the fields in `architecture`, or with those published under `name`."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if architecture is not None:
        fields, known = dict(architecture), CLIPVisionConfig().to_dict()
        unknown = next((key for key in fields if key not in known), None)
        if unknown is not None:
            close = did_you_mean(unknown, known)
            raise InputError(f"{where}: architecture.{unknown} is not a field of CLIPVisionConfig; {close}")
    elif name in KNOWN_TOWERS:
        fields = {**KNOWN_TOWERS[name], "hidden_act": hidden_act(name)}
    else:
        try:
            fields = CLIPVisionConfig.from_pretrained(name).to_dict()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{where}: the architecture of {name!r} could not be read ({one_line(error)}); known without a network:"
                f" {', '.join(KNOWN_TOWERS)}; for others give backbone_config.architecture or a local folder"
            ) from error
    try:
        return CLIPVisionModel(CLIPVisionConfig(**fields))
    except Exception as error:  # transformers 5 raises validation errors, 4 any error of a layer
        raise InputError(f"{where}: no CLIP backbone can be built from {fields}: {one_line(error)}") from error


# ---------------------------------------------------------------------------------- recognising a checkpoint's tower


def fitted_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Adapt `config` to a CLIP detector's weights (with our names): the tower's size, the kind of head, Effort's rank.

    A note on stderr tells if the tower is not the YAML's. An `architecture` or a folder in the YAML stays unchanged.
    """
    network = dict(backbone_config(config))
    class_token = weights.get(f"{_EMBEDDINGS}class_embedding")
    if class_token is None or class_token.ndim != 1:
        return dict(config)
    if "architecture" not in network:
        network.update(_published_tower(network.get("name_or_path"), tower_shape(weights)))
    residual = next((value for key, value in weights.items() if key.endswith(".S_residual")), None)
    if residual is not None and residual.ndim == 1:
        network["residual_rank"] = len(residual)
    head = weights.get("head.linear.weight", weights.get("head.weight"))
    if head is not None and head.ndim == 2:
        projection = weights.get("head.projection.weight")
        network["head"] = {
            "logits": head.shape[0],
            "normalised": "head.linear.weight" in weights,
            "projection": None if projection is None else projection.shape[0],
        }
    return {**config, "backbone_config": network}


def _published_tower(named: object, shape: tuple[int, ...] | None) -> dict[str, str]:
    """Return `name_or_path` of the published tower with this shape, if the YAML names a different published one."""
    if shape is None or (named is not None and named not in KNOWN_TOWERS):
        return {}
    name = str(named or DEFAULT_TOWER)
    alike = [other for other, fields in KNOWN_TOWERS.items() if tuple(fields[key] for key in _SHAPE) == shape]
    if not alike or (named and name in alike):
        return {}
    best = min(alike, key=lambda other: hidden_act(other) != hidden_act(name))  # ties: OpenAI's, which is first
    if named:
        width, blocks, patch, _ = shape
        print(
            f"note: the checkpoint's backbone has the size of {best} ({blocks} blocks, width {width}, patches of"
            f" {patch}), not of {named} in the YAML: {best} is built",
            file=sys.stderr,
        )
    return {"name_or_path": best}


def tower_shape(weights: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return _SHAPE of the weights' tower; None if a part is missing."""
    patches = weights.get(f"{_EMBEDDINGS}patch_embedding.weight")
    positions = weights.get(f"{_EMBEDDINGS}position_embedding.weight")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 2:
        return None
    blocks = {key.split(".")[3] for key in weights if key.startswith("backbone.encoder.layers.")}
    side = round((len(positions) - 1) ** 0.5)
    return patches.shape[0], len(blocks), patches.shape[-1], side * patches.shape[-1]
