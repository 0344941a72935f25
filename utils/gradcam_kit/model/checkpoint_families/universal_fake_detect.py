"""UniversalFakeDetect and what follows it: a whole CLIP in `model.`, and a head `fc` of one logit.

github.com/WisconsinAIVision/UniversalFakeDetect keeps OpenAI's own CLIP there (`model.visual.transformer.resblocks`).
Its head reads the projected features: fc(P x) is one linear layer of x, W = fc.weight · P. Effort's UniversalFakeDetect
and GenImage benchmarks (github.com/YZY-stack/Effort-AIGI-Detection) keep Hugging Face's, and their head reads x itself.
The file of either is `{'model', 'optimizer', 'total_steps'}`. What is published of the first is the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...base.errors import InputError
from .openai_clip import hugging_face_names, is_openai_clip

TOWERS = ("model.vision_model.", "vision_model.", "model.")  # before `embeddings.class_embedding`
TEXT = ("text_model.", "text_projection.", "logit_scale", "logit_bias")  # no part of a detector


def is_universal_fake_detect(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is a CLIP, by either naming, and a head `fc`."""
    return "fc.weight" in weights and (is_openai_clip(weights) or tower_prefix(weights) is not None)


def tower_prefix(weights: Mapping[str, Tensor]) -> str | None:
    """What stands before the names of Hugging Face's vision tower; None where there is none."""
    return next((prefix for prefix in TOWERS if f"{prefix}embeddings.class_embedding" in weights), None)


def universal_fake_detect_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tower and head under `backbone.` and `head.`; the projection is merged into the head where the head reads it."""
    found = vision_part(weights)
    projection = found.pop("visual_projection.weight", None)
    head = found.pop("fc.weight")
    width = found["backbone.embeddings.class_embedding"].shape[-1]
    if head.ndim == 2 and projection is not None and head.shape[1] != width:
        if head.shape[1] != projection.shape[0]:
            raise InputError(
                f"the head fc reads {head.shape[1]} features, but the tower gives {width}, projected"
                f" {projection.shape[0]}: not the head of this CLIP"
            )
        head = (head.double() @ projection.double()).to(head.dtype)
    found["head.weight"] = head
    if "fc.bias" in found:
        found["head.bias"] = found.pop("fc.bias")
    return found


def vision_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower under `backbone.`, `visual_projection.weight`, and what is no part of a CLIP, under its own names."""
    if is_openai_clip(weights):
        return hugging_face_names(weights)
    prefix = tower_prefix(weights)
    assert prefix is not None, "recognised"
    found = {}
    for key, tensor in weights.items():
        inner = key[len("model.") :] if key.startswith("model.") else key
        if key.startswith(prefix) and not inner.startswith(("visual_projection.", "fc.", *TEXT)):
            found["backbone." + key[len(prefix) :]] = tensor
        elif not inner.startswith(TEXT):
            found[inner] = tensor
    return found


def is_head_alone(weights: Mapping[str, Tensor]) -> bool:
    """Whether a file holds one linear layer and nothing else, as `fc_weights.pth` does."""
    return set(weights) == {"weight", "bias"} and weights["weight"].ndim == 2


def refuse_head_alone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raises InputError: a detector needs its tower too."""
    logits, features = weights["weight"].shape
    raise InputError(
        f"a linear head alone (logits {logits}, features {features}), as UniversalFakeDetect publishes it: the tower"
        " that it reads is not in the file; build the whole model in a function of your own, and give --detector"
        " my_module:build"
    )
