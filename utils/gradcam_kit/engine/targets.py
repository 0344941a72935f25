"""The target of a heatmap: the score that it explains for each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError

# A target for the whole batch or per image, in any form that `target_entries` accepts.
Target = str | int | Sequence[str | int] | Tensor


def target_entries(target: Any) -> str | list[str | int]:
    """Return a target as one name for the whole batch, or one name or number per image.

    Names are "predicted", "fake", "real", "label", "margin", "both" and the class names; 0 and False mean real, 1 and
    True fake. A single number is for the whole batch; a sequence, array or tensor has one entry per image.
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
    """Return a single integer or bool from Python, NumPy or PyTorch as an int; None for anything else."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return int(value) if isinstance(value, int) else None


def label_numbers(label: Tensor) -> list[int]:
    """Return 0 (real) or 1 (fake) for each of B labels, a tensor (B,) or (B, 1).

    For integers and bools, 0 is real and anything else fake. Fractions, e.g. from label smoothing or mixing, are real
    below 0.5. Raises InputError for 0.5, NaN, negative numbers and several numbers per image.
    """
    if label.ndim == 0 or label.numel() != len(label):
        raise InputError(
            f"data_dict['label'] has shape {tuple(label.shape)}: give one label for each image, 0 for real"
        )
    numbers = label.detach().flatten().tolist()
    if not label.is_floating_point():
        return [int(number != 0) for number in numbers]
    odd = next((number for number in numbers if not (number >= 0 and number != 0.5)), None)
    if odd is not None:
        raise InputError(
            f"data_dict['label'] holds {odd:g}, which is neither real nor fake: give 0 for real, 1 for fake"
        )
    return [int(number > 0.5) for number in numbers]


def wants_both(target: Target) -> bool:
    """True if `target` asks for two maps per image ("fake", "real"). Raises InputError if only some entries do."""
    entries = target_entries(target)
    if isinstance(entries, str):
        return entries == "both"
    if "both" not in entries:
        return False
    if any(entry != "both" for entry in entries):
        raise InputError("target 'both' gives two maps per image: use it for the whole batch or not at all")
    return True
