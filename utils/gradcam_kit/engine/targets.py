"""What a heatmap explains: the score of each image, which the detector's head makes of its logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError, did_you_mean
from .checks import Checks, read_at_once
from .heads import REAL_OR_FAKE, Head

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
    """A single number of any kind, None for anything else."""
    if isinstance(value, Tensor) and value.ndim:
        return None
    try:
        return int(value.__index__())
    except (AttributeError, TypeError, ValueError):
        return None


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


def score_weights(
    logits: Tensor,
    target: Target,
    label: Tensor | None,
    head: Head = REAL_OR_FAKE,
    checks: Checks | None = None,
) -> tuple[Tensor, list[str]]:
    """Coefficients (B, K) whose weighted sum of the logits has each score's gradient, and each target's name.

    `target`: one of TARGETS but "both" or the name of a class, for the whole batch, or one entry per image (a name, or
    0 real / 1 fake). Raises InputError. `checks`: with them the names of targets "predicted" are "fake" until they are
    read.
    Always on logits: a probability saturates, and the softmax depends on the margin fake - real alone.
    """
    count = logits.shape[0]
    given = target_entries(target)
    entries = [given] * count if isinstance(given, str) else given
    if "both" in entries:
        raise InputError("target 'both' makes two passes, which one pass cannot: call explain")
    if len(entries) != count:
        raise InputError(
            f"target has {len(entries)} entries for a batch of {count} images: give one name, or one per image"
        )
    labels: list[int] = []
    if "label" in entries:
        if label is None:
            raise InputError("target 'label' needs one label per image in data_dict['label'] (0 real, otherwise fake)")
        if len(label) != count:
            raise InputError(f"data_dict['label'] has {len(label)} entries for a batch of {count} images")
        labels = (label != 0).int().tolist()
    names = [_score_name("fake" if entry == "predicted" else entry, i, labels, head) for i, entry in enumerate(entries)]
    weights = head.coefficients(logits, names)
    predicted = [i for i, entry in enumerate(entries) if entry == "predicted"]
    if not predicted:
        return weights, names
    if_real = ["real" if entry == "predicted" else name for entry, name in zip(entries, names, strict=True)]
    is_fake = head.predicts_fake(logits)
    with read_at_once(checks) as asked:
        asked.add(is_fake, partial(_name_predicted, names, predicted))
    return torch.where(is_fake[:, None], weights, head.coefficients(logits, if_real)), names


def _name_predicted(names: list[str], predicted: Sequence[int], is_fake: Tensor) -> None:
    for i in predicted:
        names[i] = "fake" if is_fake[i] else "real"


def _score_name(target: str | int, index: int, labels: Sequence[int], head: Head) -> str:
    if target in ("fake", "real", "margin", *head.names):
        return str(target)
    if target == "label":
        target = labels[index]
    if target not in (0, 1):
        allowed = list(dict.fromkeys((*TARGETS, *head.names)))
        raise InputError(
            f"target {target!r} is unknown; {did_you_mean(str(target), allowed)}allowed: {', '.join(allowed)}"
        )
    return "fake" if target == 1 else "real"
