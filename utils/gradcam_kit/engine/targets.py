"""What a heatmap explains: the score of each image, which the detector's head makes of its logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError

# What a heatmap explains, for the whole batch or per image, in any spelling that `target_entries` understands.
Target = str | int | Sequence[str | int] | Tensor


def target_entries(target: Any) -> str | list[str | int]:
    """A target in any spelling → one name for the whole batch, or one name or number per image.

    Names are "predicted", "fake", "real", "label", "margin", "both" and those of classes; 0 and False mean real, 1 and
    True fake. One number stands for the whole batch; a sequence, an array or a tensor has one entry per image.
    """
    if isinstance(target, str):
        return str(target)
    one = _class_number(target)
    if one is not None:
        return ("real", "fake")[one] if one in (0, 1) else str(one)
    entries = target.tolist() if hasattr(target, "tolist") else target
    if not isinstance(entries, Iterable) or isinstance(entries, Mapping):
        raise InputError(
            f"target is {target!r}: give one of {', '.join(TARGETS)}, a class's name, or one entry per image"
        )
    numbers = [(entry, _class_number(entry)) for entry in entries]
    return [entry if number is None else number for entry, number in numbers]


def _class_number(value: Any) -> int | None:
    """A single whole number or truth value, Python's, NumPy's or PyTorch's; None for anything else."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return int(value) if isinstance(value, int) else None


def wants_both(target: Target) -> bool:
    """Whether `target` means two maps per image, of "fake" and "real". Raises InputError where only some entries do."""
    entries = target_entries(target)
    if isinstance(entries, str):
        return entries == "both"
    if "both" not in entries:
        return False
    if any(entry != "both" for entry in entries):
        raise InputError("target 'both' gives two maps per image: give it for the whole batch, or for none of it")
    return True
