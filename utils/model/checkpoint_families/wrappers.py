"""What wrappers put into the names of weights: DDP, torch.compile, FSDP, activation checkpointing, weight averaging."""

from __future__ import annotations

from typing import Mapping

from torch import Tensor

SEGMENTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(key: str) -> str:
    """The key without the segments that wrappers have put into it, wherever they stand."""
    return ".".join(part for part in key.split(".") if part not in SEGMENTS) or key


def without_outer_wrappers(key: str) -> str:
    """The key without such segments at its start: what is left may be the model's own name, `module` in it too."""
    parts = key.split(".")
    while len(parts) > 1 and parts[0] in SEGMENTS:
        parts = parts[1:]
    return ".".join(parts)


def without_counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `n_averaged`, the number of models that torch's `AveragedModel` has averaged (`swa.pth`)."""
    return {key: value for key, value in weights.items() if key != "n_averaged" or value.ndim}
