"""The projects whose state dicts can be read; `register_checkpoint` adds one. A head `fc` has one logit.

- DF40, DeepfakeBench and Effort: from their training, and their releases.
- UniversalFakeDetect (github.com/WisconsinAIVision/UniversalFakeDetect): OpenAI's CLIP in `model.`, and a head `fc`
  that reads the projected features: fc(P x) is one linear layer of x, W = fc.weight · P. Effort's UniversalFakeDetect
  and GenImage benchmarks (github.com/YZY-stack/Effort-AIGI-Detection) keep Hugging Face's CLIP, and their head reads x.
  Both write `{'model', 'optimizer', 'total_steps'}`. The first publishes only the head.
- C2P-CLIP (github.com/chuangchuangtan/C2P-CLIP-DeepfakeDetection): Hugging Face's CLIP in `model.`, whose projected
  features are divided by their norm, and a head `model.fc`.
- GenD (github.com/yermandy/GenD): `feature_extractor.vision_model`, and a head `model.linear` of two logits. Of the two
  heads in its code this is `LinearNorm`, the published one; `linear`, without the norm, has the same names. Its DINO
  and Perception Encoder towers have other names and are not read.

The heads of the last two are a `NormalisedHead` here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...base.errors import InputError
from .renaming import Weights, with_prefixes


class CheckpointFamily(NamedTuple):
    """The state dicts of one project or tool; the fields are the arguments of `register_checkpoint`."""

    name: str
    recognises: Callable[[Weights], bool]
    translate: Callable[[Weights], dict[str, Tensor]]


def register_checkpoint(
    name: str, recognises: Callable[[Weights], bool], translate: Callable[[Weights], dict[str, Tensor]]
) -> None:
    """Register the checkpoints of another project. Its family is tried before those registered earlier.

    Args:
        name: the project's name; a family of the same name is replaced.
        recognises: tells whether a state dict, without `module.` and the like in its keys, is of this family.
        translate: returns the weights under our detectors' names (`backbone.`, `head.`). It may drop or merge tensors,
            and raises InputError for an incomplete detector.
    """
    new = CheckpointFamily(name, recognises, translate)
    FAMILIES[:] = [new, *(family for family in FAMILIES if family.name != name)]


def family_of(weights: Weights) -> CheckpointFamily:
    """Return the family of a state dict."""
    return next(family for family in FAMILIES if family.recognises(weights))


def _gend(weights: Weights) -> dict[str, Tensor]:
    # Without CLIP's projection, which GenD saves but does not use.
    read = {key: weights[key] for key in weights if not key.startswith("feature_extractor.visual_projection.")}
    return with_prefixes(read, ("feature_extractor.vision_model.", "backbone."), ("model.linear.", "head.linear."))


def _c2p_clip(weights: Weights) -> dict[str, Tensor]:
    return with_prefixes(vision_part(weights), ("visual_projection.", "head.projection."), ("fc.", "head.linear."))


def _universal_fake_detect(weights: Weights) -> dict[str, Tensor]:
    """Merge the projection into the head. Raises InputError if the head belongs to another CLIP."""
    found = vision_part(weights)
    projection = found.pop("visual_projection.weight", None)
    head = found.pop("fc.weight")
    width = found["backbone.embeddings.class_embedding"].shape[-1]
    if head.ndim == 2 and projection is not None and head.shape[1] != width:
        if head.shape[1] != projection.shape[0]:
            raise InputError(
                f"the head fc reads {head.shape[1]} features, but the backbone has {width}, projected"
                f" {projection.shape[0]}: the head belongs to another CLIP"
            )
        head = (head.double() @ projection.double()).to(head.dtype)
    return with_prefixes({**found, "head.weight": head}, ("fc.bias", "head.bias"))


def _refuse_single_layer(weights: Weights) -> dict[str, Tensor]:
    """Raise InputError, because a detector needs its tower too."""
    logits, features = weights["weight"].shape
    raise InputError(
        f"only a linear head (logits {logits}, features {features}), as UniversalFakeDetect publishes it: its"
        " backbone is not in the file; build the whole model in your own function, and give --detector"
        " my_module:build"
    )


def _host(weights: Weights) -> dict[str, Tensor]:
    """Remove Lightning's prefix `model.` and the prefix `vision_model.` of transformers 4."""
    lightning = ("model.backbone.", "backbone."), ("model.head.", "head.")
    released = ("base_model.", "backbone."), ("classifier.", "head.")  # in some releases
    return with_prefixes(weights, *lightning, *released, ("backbone.vision_model.", "backbone."))


# The first family that recognises a file reads it. The last one, with the benchmarks' names, accepts every file.
FAMILIES = [
    CheckpointFamily("GenD",
        {"model.linear.weight", "feature_extractor.vision_model.embeddings.class_embedding"}.issubset, _gend),
    CheckpointFamily("C2P-CLIP",
        {"model.fc.weight", "model.vision_model.embeddings.class_embedding"}.issubset, _c2p_clip),
    CheckpointFamily("UniversalFakeDetect, and Effort's",
        lambda weights: "fc.weight" in weights and has_clip(weights), _universal_fake_detect),
    CheckpointFamily("UniversalFakeDetect's head only",  # one linear layer and nothing else, as in `fc_weights.pth`
        lambda weights: set(weights) == {"weight", "bias"} and weights["weight"].ndim == 2, _refuse_single_layer),
    CheckpointFamily("DF40, DeepfakeBench and Effort", lambda weights: True, _host),
]  # fmt: skip


# Renaming of a CLIP's vision tower from OpenAI's names (github.com/openai/CLIP, open_clip) to Hugging Face's.

OPENAI_PREFIXES = ("model.visual.", "visual.")  # before `conv1.weight`
PREFIXES = ("model.vision_model.", "vision_model.", "model.")  # Hugging Face's, before `embeddings.class_embedding`
# The text tower, which a detector does not use. OpenAI's has the vision tower's prefix without `visual.`.
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
    ("ln_pre.", "pre_layrnorm."), ("ln_post.", "post_layernorm."), ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."),
)  # fmt: skip
_FUSED = re.compile(r"^(.*)\.attn\.in_proj_(weight|bias)$")


def has_clip(weights: Weights) -> bool:
    """Tell whether the weights hold a CLIP vision tower, with OpenAI's or Hugging Face's names."""
    return _clip_prefixes(weights) != (None, None)


def _clip_prefixes(weights: Weights) -> tuple[str | None, str | None]:
    """Return the prefix of the tower's names, for OpenAI's and for Hugging Face's; None if not found."""
    openai = next((prefix for prefix in OPENAI_PREFIXES if f"{prefix}conv1.weight" in weights), None)
    return openai, next((prefix for prefix in PREFIXES if f"{prefix}embeddings.class_embedding" in weights), None)


def vision_part(weights: Weights) -> dict[str, Tensor]:
    """Return the tower under `backbone.`, `visual_projection.weight`, and all weights outside the CLIP unchanged."""
    openai, prefix = _clip_prefixes(weights)
    found: dict[str, Tensor] = {}
    if openai is not None:
        around = openai.removesuffix("visual.")
        for key, tensor in weights.items():
            if key.startswith(openai):
                found.update(_translated(key[len(openai) :], tensor))
            elif not (key.startswith(around) and key[len(around) :].startswith(OPENAI_TEXT)):
                found[key] = tensor
        return found
    assert prefix is not None, "recognised"
    for key, tensor in weights.items():
        inner = key.removeprefix("model.")
        if key.startswith(prefix) and not inner.startswith(("visual_projection.", "fc.", *TEXT)):
            found["backbone." + key[len(prefix) :]] = tensor
        elif not inner.startswith(TEXT):
            found[inner] = tensor
    return found


def _translated(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "proj":  # OpenAI computes features @ proj, Hugging Face uses a linear layer
        return {"visual_projection.weight": tensor.T.contiguous()}
    for old, new in PARTS:
        name = name.replace(old, new, 1)
    if fused := _FUSED.match(name):
        stem, kind = f"backbone.{fused[1]}.self_attn", fused[2]
        return {f"{stem}.{x}_proj.{kind}": part for x, part in zip("qkv", tensor.chunk(3), strict=True)}
    return {"backbone." + WHOLE.get(name, name): tensor}
