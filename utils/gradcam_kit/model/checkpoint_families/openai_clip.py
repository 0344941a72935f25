"""OpenAI's names of CLIP's vision tower (github.com/openai/CLIP, open_clip) → Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIXES = ("model.visual.", "visual.")  # before `conv1.weight`
# The text tower, which lies beside the vision tower under the same prefix less `visual.`.
TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "logit_scale")

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


def is_openai_clip(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is such a tower."""
    return _prefix(weights) is not None


def hugging_face_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower under `backbone.`, its projection as `visual_projection.weight`, the text tower left out."""
    prefix = _prefix(weights)
    assert prefix is not None, "recognised"
    beside = prefix[: -len("visual.")]
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key.startswith(prefix):
            found.update(_translated(key[len(prefix) :], tensor))
        elif not (key.startswith(beside) and key[len(beside) :].startswith(TEXT)):
            found[key] = tensor
    return found


def _translated(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "proj":  # features @ proj there, a linear layer here
        return {"visual_projection.weight": tensor.T.contiguous()}
    for old, new in PARTS:
        name = name.replace(old, new, 1)
    fused = _FUSED.match(name)
    if fused:
        parts = tensor.chunk(3)
        return {
            f"backbone.{fused[1]}.self_attn.{one}_proj.{fused[2]}": part for one, part in zip("qkv", parts, strict=True)
        }
    return {"backbone." + WHOLE.get(name, name): tensor}


def _prefix(weights: Mapping[str, Tensor]) -> str | None:
    return next((prefix for prefix in PREFIXES if f"{prefix}conv1.weight" in weights), None)
