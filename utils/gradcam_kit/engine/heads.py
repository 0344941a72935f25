"""The meaning of a detector's logits: one, two, or one per class; each stands for real or fake.

Three scores follow from the logits of any head, and all other code uses these scores:

    one logit z (sigmoid):  fake = z,  real = -z,  margin = z
    two or more (softmax):  fake = logsumexp of fake classes,  real = logsumexp of real classes,  margin = fake - real

In both cases P(fake) = sigmoid(margin), and the prediction is fake if the margin is above 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError, did_you_mean
from .checks import Checks

Prediction = dict[str, Tensor]
WORD_REAL = re.compile(r"(?<![a-z])real(?![a-z])", re.IGNORECASE)
# A target for the whole batch or per image, in any form that `target_entries` accepts.
Target = str | int | Sequence[str | int] | Tensor
RESERVED = ("predicted", "label", "margin", "both")  # targets, so not allowed as class names


class Head(NamedTuple):
    """Describes a head with one logit per name; `fake` says which stand for fake. Logits are always (B, K)."""

    names: tuple[str, ...]
    fake: tuple[bool, ...]

    @property
    def is_plain(self) -> bool:
        """True for the benchmarks' own head: two logits, real and fake."""
        return self.fake == (False, True)

    def coefficients(self, logits: Tensor, targets: Sequence[str]) -> Tensor:
        """Return the gradient (B, K) of each image's score with respect to its logits (B, K), as constants.

        `targets[i]` names the score of image i: "fake", "real", "margin" or a class. The gradient of a logsumexp is the
        softmax over its members; it is 1 for a single member.
        """
        scores = {target: self._coefficient(logits, target) for target in dict.fromkeys(targets)}
        if len(scores) == 1:
            return scores[targets[0]]
        return torch.stack([scores[target][i] for i, target in enumerate(targets)])

    def _coefficient(self, logits: Tensor, target: str) -> Tensor:
        """Return the coefficients (B, K) for one target for all images."""
        if target not in ("fake", "real", "margin"):
            return torch.zeros_like(logits).index_fill_(
                1, torch.tensor(self.names.index(target), device=logits.device), 1.0
            )
        if len(self.names) == 1:  # the logit, or its negative
            speaks_for_real = target == "real"
            return torch.full_like(logits, -1.0 if self.fake[0] == speaks_for_real else 1.0)
        if target == "margin":
            return self._softmax_over(logits, True) - self._softmax_over(logits, False)
        return self._softmax_over(logits, target == "fake")

    def _softmax_over(self, logits: Tensor, fake: bool) -> Tensor:
        members = [k for k, is_fake in enumerate(self.fake) if is_fake == fake]
        found = torch.zeros_like(logits)
        if len(members) == 1:
            found.select(1, members[0]).fill_(1.0)
        elif members:
            found[:, members] = logits[:, members].softmax(dim=1)
        return found

    def real_and_fake(self, logits: Tensor) -> Tensor:
        """Return the scores "real" and "fake" (B, 2) of logits (B, K); the logits themselves if they are these two."""
        if self.is_plain:
            return logits
        if len(self.names) == 1:
            z = logits if self.fake[0] else -logits
            return torch.cat([-z, z], dim=1)
        groups = [[k for k, is_fake in enumerate(self.fake) if is_fake == fake] for fake in (False, True)]
        return torch.stack([logits[:, members].logsumexp(dim=1) for members in groups], dim=1)

    def margin(self, logits: Tensor) -> Tensor:
        """Return the margin (B,) of logits (B, K)."""
        pair = self.real_and_fake(logits)
        return pair[:, 1] if len(self.names) == 1 else pair[:, 1] - pair[:, 0]

    def prob_fake(self, logits: Tensor) -> Tensor:
        """Return P(fake) (B,), in [0, 1], of logits (B, K)."""
        return logits.softmax(dim=1)[:, 1] if self.is_plain else self.margin(logits).sigmoid()

    def predicts_fake(self, logits: Tensor) -> Tensor:
        """Return which images are predicted fake, (B,) bool, from logits (B, K)."""
        pair = self.real_and_fake(logits)
        return pair[:, 1] > pair[:, 0]


REAL_OR_FAKE = Head(("real", "fake"), (False, True))
ONE_LOGIT = Head(("fake",), (True,))


def named_classes(classes: Any, where: str) -> dict[str, bool]:
    """Return name → is fake, in the order of the logits, from the classes that a user states.

    `classes`: a list of names. A class is real if the list says so (`{"pristine": "real"}` instead of the name) or if
    its name contains the word "real" (`FF-real`, `Celeb_Real`). If none is, the first class is real. Raises InputError
    with a message that starts with `where`.
    """
    items = list(classes) if isinstance(classes, (list, tuple)) else []
    pairs = [next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, "") for item in items]
    if not pairs or any(not isinstance(name, str) or kind not in ("", "real", "fake") for name, kind in pairs):
        raise InputError(
            f"{where} is {classes!r}; allowed: a list of class names in the order of the logits, such as"
            " [real, deepfakes, face2face]; give {name: real} or {name: fake} if the name does not say it"
        )
    kinds = [kind or ("real" if WORD_REAL.search(name) else "") for name, kind in pairs]
    if "real" not in kinds and len(kinds) > 1:
        kinds[0] = kinds[0] or "real"
    found = {name: kind != "real" for (name, _), kind in zip(pairs, kinds, strict=True)}
    if len(found) < len(pairs):
        raise InputError(
            f"{where} names a class twice ({', '.join(name for name, _ in pairs)}): give each logit a name of its own"
        )
    if len(found) > 1 and len(set(found.values())) == 1:
        only = "fake" if all(found.values()) else "real"
        raise InputError(
            f"{where}: all classes ({', '.join(found)}) are {only}: at least one must be real and one fake"
        )
    for name in RESERVED:
        if name in found:
            raise InputError(f"{where}: the class {name!r} has the name of a target: give it another name")
    for name, is_fake in found.items():
        if name in ("real", "fake") and is_fake != (name == "fake"):
            raise InputError(f"{where}: the class {name!r} cannot be {'fake' if is_fake else 'real'}")
    return found


class HeadReader(NamedTuple):
    """Reads a detector's output and decides the kind of its head.

    `detector`: its name in errors. `classes` (name → is fake, in the order of the logits): from the config; it must
    match the logits. `labels` (name → number, 0 for real): the dataset's `label_dict`; it names the classes of a head
    with three or more logits if its numbers match them exactly. Without either, class 0 is real. `batch`: the number of
    images; None: unknown.
    """

    detector: str = "the model"
    classes: Mapping[str, bool] | None = None
    labels: Mapping[str, int] = {}
    batch: int | None = None
    clips: str = ""  # for a clip detector: their length and size, used in errors

    def read(self, output: Any) -> tuple[Prediction, Head]:
        """Return the tensors in `output`, with "cls" (logits (B, K)) and "prob" (P(fake), (B,)), and the head.

        `output`: logits (B,) or (B, K), a mapping with them under "cls" or "logits", or an object with `.logits`. If it
        has two logits (real, fake) and a "prob", this "prob" is kept. Raises InputError for any other output, and for a
        wrong number of images or classes.
        """
        found = output if isinstance(output, Mapping) else {}
        logits = output_logits(output)
        if not isinstance(logits, Tensor):
            held = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
            raise InputError(
                f"{self.detector} returned {type(output).__name__}{held}: expected logits of shape (B, K), as a tensor,"
                " under 'cls' or 'logits' of a mapping, or as .logits; or give forward, a function from images to"
                " logits"
            )
        shape = tuple(logits.shape)
        count = self.batch or (logits.shape[0] if logits.ndim else 1)
        logits = _by_image(logits, count)
        if self.clips and (not logits.ndim or len(logits) != count or (self.classes is None and logits[0].numel() > 2)):
            raise InputError(
                f"{self.detector} gives predictions of shape {shape} for {count} clips, not one or two numbers per"
                f" clip: it expects other clips than these, of {self.clips}; give its own --clip_size and --resolution"
                " (or gradcam_classes, if it has more classes)",
                "clip_size",
            )
        if logits.ndim != 2 or logits.shape[0] != count or not logits.shape[1] or not logits.is_floating_point():
            raise InputError(
                f"{self.detector} returned logits of shape {shape} and type {logits.dtype} for"
                f" {count} images: expected floating point logits, one, two or one per class for"
                f" each image, ({count}, K); or give forward, a function from images to such logits"
            )
        head = self._head(logits.shape[1])
        tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        prob = tensors.get("prob")
        if prob is None or not head.is_plain or prob.shape != logits.shape[:1]:
            prob = head.prob_fake(logits)
        return {**tensors, "cls": logits, "prob": prob}, head

    def _head(self, logits: int) -> Head:
        if self.classes is not None:
            if len(self.classes) != logits:
                raise InputError(
                    f"gradcam_classes names {len(self.classes)} classes ({', '.join(self.classes)}), but"
                    f" {self.detector} has {logits} logits: name one class per logit, in their order"
                )
            return Head(tuple(self.classes), tuple(self.classes.values()))
        if logits == 1:
            return ONE_LOGIT
        if logits == 2:
            return REAL_OR_FAKE
        fake = tuple(k > 0 for k in range(logits))
        if sorted(set(self.labels.values())) == list(range(logits)):
            first = {number: name for name, number in reversed(list(self.labels.items()))}
            return Head(tuple(first[k] for k in range(logits)), fake)
        return Head(("real", *(f"class {k}" for k in range(1, logits))), fake)


def _by_image(logits: Tensor, count: int) -> Tensor:
    """Return logits (B, K) from logits with one size-1 axis too few (after `.squeeze()`) or too many."""
    if logits.ndim == 2 and len(logits) == count:
        return logits
    axes = [size for size in logits.shape if size > 1]
    of_images = logits.shape[:1] == (count,) or count == 1 or (logits.ndim == 3 and logits.shape[:2] == (1, count))
    return logits.reshape(count, -1) if of_images and len(axes) <= 1 + (count > 1) else logits


ANY_MODEL = HeadReader()


def output_logits(output: Any) -> Any:
    """Return the logits in a model's output; None if it has none."""
    if isinstance(output, Mapping):
        return output["cls"] if "cls" in output else output.get("logits")
    return output if isinstance(output, Tensor) else getattr(output, "logits", None)


# -------------------------------------------------------------------------------------------------------------- scores


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


def score_weights(
    logits: Tensor,
    target: Target,
    label: Tensor | None,
    head: Head,
    checks: Checks,
) -> tuple[Tensor, list[str]]:
    """Return coefficients (B, K) and each target's name; Σ_k coefficient · logit has the score's gradient.

    `target`: one of TARGETS except "both", or a class name, for the whole batch; or one entry per image (a name, or
    0 real / 1 fake). Raises InputError. "predicted" targets are named "fake" until `checks` is read.
    The score is always made of logits: a probability saturates, and softmax depends only on the margin fake - real.
    """
    count = logits.shape[0]
    given = target_entries(target)
    entries = [given] * count if isinstance(given, str) else given
    if "both" in entries:
        raise InputError("target 'both' needs two passes, and this call makes one: call explain")
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
        labels = label_numbers(label)
    names = [_score_name("fake" if entry == "predicted" else entry, i, labels, head) for i, entry in enumerate(entries)]
    weights = head.coefficients(logits, names)
    predicted = [i for i, entry in enumerate(entries) if entry == "predicted"]
    if not predicted:
        return weights, names
    if_real = ["real" if entry == "predicted" else name for entry, name in zip(entries, names, strict=True)]
    is_fake = head.predicts_fake(logits)
    checks.append((is_fake, partial(_name_predicted, names, predicted)))
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
