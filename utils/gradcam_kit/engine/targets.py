"""What a heatmap explains: the score of each image, which the detector's head makes of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError, did_you_mean
from .checks import Checks, read_at_once
from .heads import REAL_OR_FAKE, Head

Target = str | Sequence[str | int] | Tensor


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
    if isinstance(target, Tensor):
        target = target.tolist()
    entries = [target] * count if isinstance(target, str) else list(target)
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
