"""For a model that ends in a sigmoid or softmax, find its logits: the input of that function.

A sigmoid of a probability would call every image fake, and a probability's gradient vanishes if the model is sure. So
the code follows a model's first forward pass, function by function, to see what made its output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...base.errors import InputError
from ..heads import output_logits

SIGMOIDS = {
    torch.sigmoid,
    torch.sigmoid_,
    Tensor.sigmoid,
    Tensor.sigmoid_,
    F.sigmoid,
    torch.special.expit,
    F.logsigmoid,
}
SOFTMAXES = {
    torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax,
    torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax,
}  # fmt: skip
IN_PLACE = {torch.sigmoid_, Tensor.sigmoid_}
# By name: what leaves every value as it is, but for its place and type, or its last digits; or makes log p of p.
MOVES = {
    "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel",
    "unflatten", "__getitem__", "select", "narrow", "index_select", "chunk", "split", "unbind", "transpose", "permute",
    "t", "swapaxes", "movedim", "expand", "contiguous", "clone", "detach", "to", "type", "type_as", "float", "double",
    "half", "bfloat16", "cpu", "cuda",
}  # fmt: skip
ROUNDS = {"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_max", "nan_to_num", "log", "exp"}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "column_stack"}
# Where 1 and p stand in a 1 − p.
RESTS = {"__rsub__": (1, 0), "rsub": (1, 0), "sub": (0, 1), "subtract": (0, 1), "__sub__": (0, 1)}
PRODUCTS = {
    "linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear",
    "conv1d", "conv2d", "conv3d",
}  # fmt: skip
# What leaves a product unbounded: its scale, its bias, its mean over places.
OVER_AXES = {
    "mean", "sum", "std", "var", "var_mean", "std_mean", "amax", "amin", "max", "min", "median", "softmax",
    "log_softmax", "logsumexp", "norm", "vector_norm", "cumsum", "sort", "argsort", "topk",
}  # fmt: skip
REORDERS = {"roll", "flip", "index_select"}  # the images, or the places of each
SCALED = {
    "mul", "__mul__", "__rmul__", "mul_", "div", "__truediv__", "add", "__add__", "__radd__", "add_", "sub", "__sub__",
    "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d",
}  # fmt: skip

ONE = {torch.float16: 1e-2, torch.bfloat16: 3e-2}  # tolerance for the sum of an image's probabilities; else 1e-4
SCALES = (-30.0, -3.0, 0.0, 3.0, 30.0)  # number of images that show whether a single output ever leaves [0, 1]


class Before(NamedTuple):
    """What is known about a probability p, computed on demand; both have its shape."""

    logits: Callable[[], Tensor | None]  # the input of the sigmoid or softmax; None for 1 − p
    odds: Callable[[], Tensor]  # log(p / (1 − p)), elementwise

    def moved(self, move: Callable[[Tensor], Tensor]) -> Before:
        """Return the `Before` of the probability that `move` makes from this one."""

        def logits() -> Tensor | None:
            read = self.logits()
            return None if read is None else move(read)

        return Before(logits, lambda: move(self.odds()))


def _joined(parts: list[Before], join: Callable[[list[Tensor]], Tensor]) -> Before:
    def logits() -> Tensor | None:
        read = [part.logits() for part in parts]
        known = [one for one in read if one is not None]
        return join(known) if len(known) == len(read) else None

    return Before(logits, lambda: join([part.odds() for part in parts]))


def _softmax_odds(read: Tensor, dim: int) -> Tensor:
    """log(p_k / (1 − p_k)) = z_k − logsumexp of the others."""
    z = read.transpose(dim, -1)
    itself = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
    others = z.unsqueeze(-2).expand(*z.shape, z.shape[-1]).masked_fill(itself, -torch.inf)
    return (z - others.logsumexp(dim=-1)).transpose(dim, -1)


class Followed(TorchFunctionMode):
    """Records the origin of every tensor made inside: a probability's `Before`, the name of a product, or None.

    `over_images`: whether anything was computed across a first axis with as many entries as `images`.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images, self.over_images = images, False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = args[0] if args else kwargs.get("input")
        if function in IN_PLACE:
            read = args[0].clone()
        known = self._known(function, read, args, kwargs)
        result = function(*args, **kwargs)
        self.over_images |= self.images > 1 and self._is_over_images(function, read, args, kwargs, result)
        if isinstance(known, Before) and isinstance(result, (tuple, list)):
            for i, one in enumerate(result):
                _mark(one, known.moved(itemgetter(i)))
        else:
            _mark(result, known)
        return result

    def _is_over_images(self, function: Any, read: Any, args: Any, kwargs: Any, result: Any) -> bool:
        """True if `function` may be a norm by the batch's mean, a sum over images, or a relation between images."""
        name = getattr(function, "__name__", "")
        if name == "batch_norm":
            return bool(kwargs.get("training", args[5] if len(args) > 5 else False))
        if not isinstance(read, Tensor) or read.ndim == 0 or read.shape[0] != self.images:
            return False
        if name in REORDERS or (name == "__getitem__" and isinstance(args[1], Tensor)):
            return True
        if name in OVER_AXES:
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            dims = dims if isinstance(dims, (tuple, list)) else [dims]
            return any(dim is None or (isinstance(dim, int) and dim % read.ndim == 0) for dim in dims)
        other = args[1] if len(args) > 1 else None
        if isinstance(other, nn.Parameter) or (read.ndim > 2 and name != "einsum"):
            return False  # weights belong to no image, and batched products keep images apart
        both = (self.images, self.images)
        return name in PRODUCTS and isinstance(result, Tensor) and both in (result.shape[:2], result.shape[-2:])

    def _known(self, function: Any, read: Any, args: Any, kwargs: Any) -> Any:
        """Return the `Before` of the result of `function`; a list for several tensors."""
        name = getattr(function, "__name__", "")
        if function in SIGMOIDS:
            return Before(lambda: read, lambda: read)
        if function in SOFTMAXES:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return Before(lambda: read, partial(_softmax_odds, read, dim if isinstance(dim, int) else 1))
        made = _made_by(read)
        if name in MOVES:
            moved = partial(_again, function, args[1:], kwargs)
            return made.moved(moved) if isinstance(made, Before) else made
        if name in ROUNDS:
            return made if isinstance(made, Before) else None
        if name in JOINS:
            parts = [_made_by(one) for one in (args[0] if args else kwargs["tensors"])]
            alike = all(isinstance(part, Before) for part in parts)
            return _joined(parts, partial(_again, function, args[1:], kwargs)) if alike else None
        if name in RESTS and len(args) > 1:
            one, p = (args[place] for place in RESTS[name])
            made = _made_by(p)
            if isinstance(made, Before) and (bool((one == 1).all()) if isinstance(one, Tensor) else one == 1):
                return Before(lambda: None, lambda: -made.odds())
        if name in SCALED:
            return next((made for made in map(_made_by, args) if isinstance(made, str)), None)
        return name if name in PRODUCTS else None


def _again(function: Any, further: Any, kwargs: Any, tensor: Any) -> Any:
    return function(
        tensor, *further, **{key: value for key, value in kwargs.items() if key not in ("input", "tensors")}
    )


def _made_by(tensor: Any) -> Any:
    return getattr(tensor, "_made_by", None) if isinstance(tensor, Tensor) else None


def _mark(tensor: Any, made: Any) -> None:
    if isinstance(tensor, Tensor) and (made is not None or hasattr(tensor, "_made_by")):
        tensor._made_by = made  # type: ignore[attr-defined]  # lives and dies with the activation


# ------------------------------------------------------------------------------------------------------------- reading

SAYS_PROBABILITIES = "returns probabilities: the input of its last sigmoid or softmax is used as its logits"


class Reading:
    """How to read a model's output, found in its first forward pass, which is slower for this reason.

    `known`: None before that pass; False for probabilities, whose logits must be found in every pass.
    """

    def __init__(self) -> None:
        self.known: bool | None = None  # whether the outputs are logits
        self.may_mix: bool | None = None  # whether anything was computed across images; None before several were

    def output(self, predict: Callable[[Tensor], Any], images: Tensor, name: str) -> Any:
        """Return the model's output for B `images` by `predict`; for probabilities, with the logits under "cls".

        Warns once if they are probabilities. Raises InputError if they must be probabilities but their logits were not
        found. `name`: the model's, for errors.
        """
        alone = len(images) == 1
        if self.known and (alone or self.may_mix is not None):
            return predict(images)
        with Followed(len(images)) as followed:
            output = predict(images)
        self.may_mix = self.may_mix if alone else followed.over_images or bool(self.may_mix)
        if self.known:
            return output
        values = output_logits(output)
        if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel():
            return output
        before = _made_by(values)
        if isinstance(before, Before) and not _says_logits(output, values):
            if self.known is None:
                warnings.warn(f"{name} {SAYS_PROBABILITIES}", stacklevel=2)
            self.known = False
            return _with_logits(output, _read(before, values.numel() // len(images)))
        if before is None and self.known is None and not _says_logits(output, values):
            _refuse_probabilities(values, partial(_values_of, predict, images), len(images), name)
        self.known = True
        return output


def _with_logits(output: Any, logits: Tensor) -> dict[str, Any]:
    beside = output if isinstance(output, Mapping) else {}
    return {**{key: value for key, value in beside.items() if key != "logits"}, "cls": logits}


def _read(before: Before, classes: int) -> Tensor:
    """Return logits for which the head's sigmoid, or softmax over `classes`, gives the model's own probability."""
    if classes == 1:
        return before.odds()
    logits = before.logits()
    if logits is not None:
        return logits
    return before.odds() / 2 if classes == 2 else F.logsigmoid(before.odds())


def _says_logits(output: Any, values: Tensor) -> bool:
    """True if the output's "prob" is the softmax of its two scores, as in every detector of the hosts."""
    prob = output.get("prob") if isinstance(output, Mapping) else None
    if not isinstance(prob, Tensor) or values.ndim != 2 or values.shape[1] != 2 or prob.shape != values.shape[:1]:
        return False
    return torch.allclose(values.softmax(dim=1)[:, 1].to(prob.dtype), prob, atol=1e-3)


def _values_of(predict: Callable[[Tensor], Any], images: Tensor, scale: float) -> Tensor:
    found = output_logits(predict(images[:2] * scale + 0.1 * scale))
    assert isinstance(found, Tensor), "as the pass before"
    return found


def _refuse_probabilities(values: Tensor, scaled: Callable[[float], Tensor], images: int, name: str) -> None:
    """Raise InputError for outputs that add up to one, or for a single output that is never outside [0, 1]."""
    if not _within_one(values):
        return
    if values.numel() > images:
        together = values.detach().reshape(images, -1).double().sum(dim=1)
        if bool(((together - 1).abs() > ONE.get(values.dtype, 1e-4)).any()):
            return
    elif not all(_within_one(scaled(scale)) for scale in SCALES):
        return
    raise InputError(
        f"{name} returns probabilities (its outputs lie between 0 and 1"
        f"{', those of an image add up to 1' if values.numel() > images else ''}), and no sigmoid or softmax was found"
        " that reads its logits: return logits, or give forward, a function from images to logits"
    )


def _within_one(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())
