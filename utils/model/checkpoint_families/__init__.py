"""Whose state dicts can be read. A new family is one file here and one line in FAMILIES."""

from __future__ import annotations

from typing import Callable, Mapping, NamedTuple

from torch import Tensor

from utils.model.checkpoint_families.host import host_names

Weights = Mapping[str, Tensor]


class CheckpointFamily(NamedTuple):
    """State dicts that one project or tool writes.

    `recognises` looks at the keys, from which `module.` is already taken off. `translate` gives the same weights under
    the names that the detectors here use (`backbone.`, `head.`); it may leave out or merge tensors, and raises
    KeysCollide where two of them would bear one name.
    """

    name: str
    recognises: Callable[[Weights], bool]
    translate: Callable[[Weights], dict[str, Tensor]]


# The first that recognises a file reads it; the benchmarks' own names come last and fit every file.
FAMILIES: tuple[CheckpointFamily, ...] = (
    CheckpointFamily("DF40, DeepfakeBench and Effort", lambda weights: True, host_names),
)


def family_of(weights: Weights) -> CheckpointFamily:
    """The family that a state dict belongs to."""
    return next(family for family in FAMILIES if family.recognises(weights))
