"""State dicts of DF40's, DeepfakeBench's and Effort's own training, and of their releases."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .renaming import renamed

# Old name at the start of a key → the detectors' own name. In this order: one may uncover the next.
# Lightning and others hold the detector as `model.`. Some releases name the tower `base_model.` and the head
# `classifier.`; transformers 4 nests a `vision_model.`.
RENAMES = (
    ("model.backbone.", "backbone."),
    ("model.head.", "head."),
    ("base_model.", "backbone."),
    ("classifier.", "head."),
    ("backbone.vision_model.", "backbone."),
)


def host_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under `backbone.` and `head.`. Raises KeysCollide where two keys mean the same."""
    return renamed(weights, _host_name)


def _host_name(key: str) -> str:
    for old, new in RENAMES:
        if key.startswith(old):
            key = new + key[len(old) :]
    return key
