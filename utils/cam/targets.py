"""What a heatmap explains: the score of each image, as a weighted sum of its two logits."""

from __future__ import annotations

from typing import Sequence, Union

from torch import Tensor

from utils.errors import InputError, did_you_mean

TARGETS = ("predicted", "fake", "real", "label", "margin", "both")


Target = Union[str, Sequence[Union[str, int]], Tensor]


def score_weights(logits: Tensor, target: Target, label: Tensor | None) -> tuple[Tensor, list[str]]:
    """Coefficients (B, 2) by which the logits (real, fake) sum to each image's score, and the target's name for each.

    `target`: one of TARGETS but "both" for the whole batch, or one entry per image (a name, or a class 0 / 1). Raises
    InputError.
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
    classes = logits.argmax(dim=1).tolist() if "predicted" in entries else []
    labels: list[int] = []
    if "label" in entries:
        if label is None:
            raise InputError("target 'label' needs one label per image in data_dict['label'] (0 real, otherwise fake)")
        if len(label) != count:
            raise InputError(f"data_dict['label'] has {len(label)} entries for a batch of {count} images")
        labels = (label != 0).int().tolist()
    names = [_class_name(entry, i, classes, labels) for i, entry in enumerate(entries)]
    coefficients = {"real": (1.0, 0.0), "fake": (0.0, 1.0), "margin": (-1.0, 1.0)}
    return logits.new_tensor([coefficients[name] for name in names]), names


def _class_name(target: str | int, index: int, predicted: Sequence[int], labels: Sequence[int]) -> str:
    if target in ("fake", "real", "margin"):
        return str(target)
    if target == "predicted":
        target = predicted[index]
    elif target == "label":
        target = labels[index]
    if target not in (0, 1):
        raise InputError(
            f"target {target!r} is unknown; {did_you_mean(str(target), TARGETS)}allowed: {', '.join(TARGETS)}"
        )
    return "fake" if target == 1 else "real"
