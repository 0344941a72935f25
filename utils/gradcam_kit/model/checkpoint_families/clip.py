"""The vision tower of a CLIP, by OpenAI's names (github.com/openai/CLIP, open_clip) or Hugging Face's → the latter."""

from __future__ import annotations

import re

from torch import Tensor

from .renaming import Weights

OPENAI_PREFIXES = ("model.visual.", "visual.")  # before `conv1.weight`
PREFIXES = ("model.vision_model.", "vision_model.", "model.")  # of Hugging Face's, before `embeddings.class_embedding`
# The text tower, which is no part of a detector. OpenAI's has the vision tower's prefix less `visual.`.
OPENAI_TEXT = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
)
TEXT = ("text_model.", "text_projection.", "logit_scale", "logit_bias")

WHOLE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
}
PARTS = (
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_FUSED = re.compile(r"^(.*)\.attn\.in_proj_(weight|bias)$")


def has_clip(weights: Weights) -> bool:
    """Whether there is such a tower, by either naming."""
    return _openai_prefix(weights) is not None or _prefix(weights) is not None


def vision_part(weights: Weights) -> dict[str, Tensor]:
    """The tower under `backbone.`, `visual_projection.weight`, and what is no part of a CLIP, under its own names."""
    prefix = _openai_prefix(weights)
    if prefix is not None:
        return _from_openai(weights, prefix)
    prefix = _prefix(weights)
    assert prefix is not None, "recognised"
    found = {}
    for key, tensor in weights.items():
        inner = key.removeprefix("model.")
        if key.startswith(prefix) and not inner.startswith(("visual_projection.", "fc.", *TEXT)):
            found["backbone." + key[len(prefix) :]] = tensor
        elif not inner.startswith(TEXT):
            found[inner] = tensor
    return found


def _openai_prefix(weights: Weights) -> str | None:
    return next((prefix for prefix in OPENAI_PREFIXES if f"{prefix}conv1.weight" in weights), None)


def _prefix(weights: Weights) -> str | None:
    return next((prefix for prefix in PREFIXES if f"{prefix}embeddings.class_embedding" in weights), None)


def _from_openai(weights: Weights, prefix: str) -> dict[str, Tensor]:
    around = prefix.removesuffix("visual.")
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key.startswith(prefix):
            found.update(_translated(key[len(prefix) :], tensor))
        elif not (key.startswith(around) and key[len(around) :].startswith(OPENAI_TEXT)):
            found[key] = tensor
    return found


def _translated(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "proj":  # features @ proj there, a linear layer here
        return {"visual_projection.weight": tensor.T.contiguous()}
    for old, new in PARTS:
        name = name.replace(old, new, 1)
    if fused := _FUSED.match(name):
        stem, kind = f"backbone.{fused[1]}.self_attn", fused[2]
        return {f"{stem}.{x}_proj.{kind}": part for x, part in zip("qkv", tensor.chunk(3), strict=True)}
    return {"backbone." + WHOLE.get(name, name): tensor}
