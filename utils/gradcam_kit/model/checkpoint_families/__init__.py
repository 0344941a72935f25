"""Whose state dicts can be read. A new family is one file here and one line in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from .host import host_names
from .normalised_heads import c2p_clip_names, gend_names, is_c2p_clip, is_gend
from .universal_fake_detect import (
    is_head_alone,
    is_universal_fake_detect,
    refuse_head_alone,
    universal_fake_detect_names,
)

Weights = Mapping[str, Tensor]


class CheckpointFamily(NamedTuple):
    """State dicts that one project or tool writes.

    `recognises` looks at the keys, from which `module.` and the like are already taken off. `translate` gives the same
    weights under the names that the detectors here use (`backbone.`, `head.`); it may leave out or merge tensors, and
    raises InputError for what is no whole detector, and KeysCollide where two tensors would bear one name.
    """

    name: str
    recognises: Callable[[Weights], bool]
    translate: Callable[[Weights], dict[str, Tensor]]


# The first that recognises a file reads it; the benchmarks' own names come last and fit every file.
FAMILIES: tuple[CheckpointFamily, ...] = (
    CheckpointFamily("GenD", is_gend, gend_names),
    CheckpointFamily("C2P-CLIP", is_c2p_clip, c2p_clip_names),
    CheckpointFamily("UniversalFakeDetect, and Effort's", is_universal_fake_detect, universal_fake_detect_names),
    CheckpointFamily("UniversalFakeDetect's head alone", is_head_alone, refuse_head_alone),
    CheckpointFamily("DF40, DeepfakeBench and Effort", lambda weights: True, host_names),
)


def family_of(weights: Weights) -> CheckpointFamily:
    """The family that a state dict belongs to."""
    return next(family for family in FAMILIES if family.recognises(weights))
