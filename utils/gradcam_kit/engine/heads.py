"""What the logits of a detector mean: one, two, or one per class, each of which speaks for real or for fake.

Whatever the head, three scores follow from its logits, and everything else goes by them:

    one logit z (sigmoid):  fake = z,  real = -z,  margin = z
    two or more (softmax):  fake = logsumexp of the fake classes,  real = that of the real ones,  margin = fake - real

The probability of fake is sigmoid(margin) in both cases, and fake is predicted where the margin is above 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.allowed import TARGETS
from ..base.errors import InputError, did_you_mean
from .checks import Checks, read_at_once
from .targets import Target, label_numbers, target_entries

Prediction = dict[str, Tensor]
WORD_REAL = re.compile(r"(?<![a-z])real(?![a-z])", re.IGNORECASE)
RESERVED = ("predicted", "label", "margin", "both")  # targets, so no names of classes


class Head(NamedTuple):
    """One logit per name; `fake` says which of them speak for fake. Logits are (B, K) throughout."""

    names: tuple[str, ...]
    fake: tuple[bool, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is the benchmarks' own head: two logits, real and fake."""
        return self.fake == (False, True)

    def coefficients(self, logits: Tensor, targets: Sequence[str]) -> Tensor:
        """(B, K): the gradient of each image's score with respect to its logits, which are constants here.

        The score of image i is `targets[i]`: "fake", "real", "margin" or the name of a class. The gradient of a
        logsumexp is the softmax over its members, so for one member it is 1.
        """
        scores = {target: self._coefficient(logits, target) for target in dict.fromkeys(targets)}
        if len(scores) == 1:
            return scores[targets[0]]
        return torch.stack([scores[target][i] for i, target in enumerate(targets)])

    def _coefficient(self, logits: Tensor, target: str) -> Tensor:
        """(B, K): the same of one target for all images."""
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
        """(B, 2): the scores "real" and "fake"; the logits themselves where there are two of that order."""
        if self.is_plain:
            return logits
        if len(self.names) == 1:
            z = logits if self.fake[0] else -logits
            return torch.cat([-z, z], dim=1)
        groups = [[k for k, is_fake in enumerate(self.fake) if is_fake == fake] for fake in (False, True)]
        return torch.stack([logits[:, members].logsumexp(dim=1) for members in groups], dim=1)

    def margin(self, logits: Tensor) -> Tensor:
        """(B,): the score "margin"."""
        pair = self.real_and_fake(logits)
        return pair[:, 1] if len(self.names) == 1 else pair[:, 1] - pair[:, 0]

    def prob_fake(self, logits: Tensor) -> Tensor:
        """(B,): in [0, 1]."""
        return logits.softmax(dim=1)[:, 1] if self.is_plain else self.margin(logits).sigmoid()

    def predicts_fake(self, logits: Tensor) -> Tensor:
        """(B,) bool."""
        pair = self.real_and_fake(logits)
        return pair[:, 1] > pair[:, 0]


REAL_OR_FAKE = Head(("real", "fake"), (False, True))
ONE_LOGIT = Head(("fake",), (True,))


def named_classes(classes: Any, where: str) -> dict[str, bool]:
    """Name → whether it is fake, in the order of the logits, from what a person states.

    `classes`: a list of names. Real are those stated so (`{"pristine": "real"}` in place of the name) and those with
    the word "real" in them (`FF-real`, `Celeb_Real`), or else the first. Raises InputError, whose message begins with
    `where`.
    """
    items = list(classes) if isinstance(classes, (list, tuple)) else []
    pairs = [next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, "") for item in items]
    if not pairs or any(not isinstance(name, str) or kind not in ("", "real", "fake") for name, kind in pairs):
        raise InputError(
            f"{where} is {classes!r}; allowed: a list of the classes' names in the order of the logits, such as"
            " [real, deepfakes, face2face], where {name: real} or {name: fake} says what a name does not"
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
        raise InputError(f"{where}: all classes ({', '.join(found)}) are {only}: at least one has to be real, one fake")
    for name in RESERVED:
        if name in found:
            raise InputError(f"{where}: the class {name!r} has the name of a target: give it another name")
    for name, is_fake in found.items():
        if name in ("real", "fake") and is_fake != (name == "fake"):
            raise InputError(f"{where}: the class {name!r} cannot be {'fake' if is_fake else 'real'}")
    return found


class HeadReader(NamedTuple):
    """Reads what one detector returns: the door at which the kind of its head is decided.

    `detector` is its name in errors. `classes` (name → whether it is fake, in the order of the logits) is what a config
    states, and has to fit; `labels` (name → number, 0 for real) is a dataset's `label_dict`, which names the classes of
    a head of three or more logits where its numbers are exactly theirs. With neither, class 0 is real.
    `batch` is the number of images, None where it is not known.
    """

    detector: str = "the model"
    classes: Mapping[str, bool] | None = None
    labels: Mapping[str, int] = {}
    batch: int | None = None
    clips: str = ""  # of a detector of clips: their length and size, for an error

    def read(self, output: Any) -> tuple[Prediction, Head]:
        """The tensors in `output`, among them "cls", logits (B, K), and "prob", probability of fake (B,).

        `output`: a tensor of logits (B,) or (B, K), a mapping that holds one under "cls" or "logits", or an object with
        `.logits`. A "prob" that comes with two logits, real and fake, is passed on as it is. Raises InputError for
        anything else, and for another number of images or classes.
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
                f"{self.detector} gives predictions of shape {shape} for {count} clips, not one or two numbers a clip:"
                f" it was made for other clips than these, of {self.clips}; give its own --clip_size and --resolution"
                " (or gradcam_classes, where it has more classes)",
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
    """(B, K) of logits with an axis of size one too few, or too many: where a `.squeeze()` took it, or none did."""
    if logits.ndim == 2 and len(logits) == count:
        return logits
    axes = [size for size in logits.shape if size > 1]
    of_images = logits.shape[:1] == (count,) or count == 1 or (logits.ndim == 3 and logits.shape[:2] == (1, count))
    return logits.reshape(count, -1) if of_images and len(axes) <= 1 + (count > 1) else logits


ANY_MODEL = HeadReader()


def output_logits(output: Any) -> Any:
    """What stands for the logits in what a model returned; None where nothing does."""
    if isinstance(output, Mapping):
        return output["cls"] if "cls" in output else output.get("logits")
    return output if isinstance(output, Tensor) else getattr(output, "logits", None)


# -------------------------------------------------------------------------------------------------------------- scores


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
        labels = label_numbers(label)
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
