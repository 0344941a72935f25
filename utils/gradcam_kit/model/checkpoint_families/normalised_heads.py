"""Detectors whose linear head reads features of length 1: C2P-CLIP and GenD. Their head is a `NormalisedHead` here.

C2P-CLIP (github.com/chuangchuangtan/C2P-CLIP-DeepfakeDetection): Hugging Face's CLIP in `model.`, whose projected
features are divided by their norm, and a head `model.fc` of one logit.
GenD (github.com/yermandy/GenD): `feature_extractor.vision_model`, and a head `model.linear` of two logits. Of the two
heads in its code this is `LinearNorm`, the published one; `linear`, without the norm, has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .renaming import renamed
from .universal_fake_detect import vision_part

GEND_TOWER = "feature_extractor.vision_model."


def is_c2p_clip(weights: Mapping[str, Tensor]) -> bool:
    """By the tower and the head, which lies beside it."""
    return "model.fc.weight" in weights and "model.vision_model.embeddings.class_embedding" in weights


def c2p_clip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under `backbone.`, `head.projection.` and `head.linear.`."""
    new = (("visual_projection.", "head.projection."), ("fc.", "head.linear."))
    return renamed(vision_part(weights), lambda key: _renamed(key, new))


def is_gend(weights: Mapping[str, Tensor]) -> bool:
    """By the tower and the head; GenD's DINO and Perception Encoder towers have other names."""
    return "model.linear.weight" in weights and f"{GEND_TOWER}embeddings.class_embedding" in weights


def gend_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under `backbone.` and `head.linear.`; CLIP's projection, which GenD keeps but does not read, is left out."""
    new = ((GEND_TOWER, "backbone."), ("model.linear.", "head.linear."))
    read = {key: value for key, value in weights.items() if not key.startswith("feature_extractor.visual_projection.")}
    return renamed(read, lambda key: _renamed(key, new))


def _renamed(key: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        if key.startswith(old):
            return new + key[len(old) :]
    return key
