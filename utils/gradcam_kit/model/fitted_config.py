"""What a checkpoint says of the detector that it belongs to, and the YAML cannot know."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..settings.backbone_config import backbone_config
from .clip_tower import DEFAULT_TOWER, KNOWN_TOWERS, hidden_act

CLASS_TOKEN = "backbone.embeddings.class_embedding"
SHAPES = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")


def fitted_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """`config` for a CLIP detector with these weights: the tower's size, the head's kind, Effort's rank.

    `weights` under the detectors' own names. Another published tower than the YAML's is said on stderr; an
    `architecture` or a folder in the YAML is left as it is. Weights of another detector change nothing.
    """
    network = dict(backbone_config(config))
    if CLASS_TOKEN not in weights or weights[CLASS_TOKEN].ndim != 1:
        return dict(config)
    if "architecture" not in network:
        network.update(_published_tower(network, weights))
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


def _published_tower(network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """`name_or_path` of the published tower of the weights' size, where the YAML's is published too and another."""
    named = network.get("name_or_path")
    if named is not None and named not in KNOWN_TOWERS:
        return {}
    found = tower_shape(weights)
    name = named or DEFAULT_TOWER
    if found is None or (named and _shape(name) == found):
        return {}
    alike = [other for other in KNOWN_TOWERS if _shape(other) == found]
    alike.sort(key=lambda other: hidden_act(other) != hidden_act(name))  # stable: OpenAI's first among equals
    if not alike or alike[0] == named:
        return {}
    if named:
        print(
            f"note: the checkpoint's tower is as large as {alike[0]} ({found['num_hidden_layers']} blocks, width"
            f" {found['hidden_size']}, patches of {found['patch_size']}), not as the YAML's {named}: that one is built",
            file=sys.stderr,
        )
    return {"name_or_path": alike[0]}


def tower_shape(weights: Mapping[str, Tensor]) -> dict[str, int] | None:
    """The fields SHAPES of the tower that the weights belong to; None where a part is missing."""
    patches = weights.get("backbone.embeddings.patch_embedding.weight")
    positions = weights.get("backbone.embeddings.position_embedding.weight")
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 2:
        return None
    blocks = {key.split(".")[3] for key in weights if key.startswith("backbone.encoder.layers.")}
    side = round((len(positions) - 1) ** 0.5)
    return dict(zip(SHAPES, (patches.shape[0], len(blocks), patches.shape[-1], side * patches.shape[-1]), strict=True))


def _shape(name: str) -> dict[str, int]:
    return {key: KNOWN_TOWERS[name][key] for key in SHAPES}
