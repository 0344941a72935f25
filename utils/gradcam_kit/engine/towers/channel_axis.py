"""Find the channel axis of a four-dimensional activation: (B, C, h, w) or (B, h, w, C).

Sizes cannot decide: 8 × 8 positions with 8 channels look the same either way. Operations can: a convolution writes
channels first, a linear layer or a layer norm over one axis writes channels last, `permute` moves them, and nearly
everything else leaves them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FIRST, LAST = 1, 3
MOST_AXES = 6  # for an activation in windows: (B, h, rows, w, columns, C) in some order
OFF = 0  # no image axis: channels were split into heads, or attention between tokens

WRITES_FIRST = {torch.conv2d, torch.conv_transpose2d, F.conv2d, F.conv_transpose2d}
WRITES_LAST = {F.linear}
NORMS_LAST = {F.layer_norm, torch.layer_norm}
PERMUTES = {torch.permute, Tensor.permute}
SWAPS = {torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims}
# Functions that may move the channels in a way that is not followed.
REORDERS = {
    torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis, torch.einsum, torch.matmul, Tensor.matmul,
    Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten,
    torch.unflatten, Tensor.unflatten, torch.unsqueeze, Tensor.unsqueeze, Tensor.unfold, torch.rot90,
}  # fmt: skip


RESHAPES = {
    torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten, torch.unflatten, Tensor.unflatten,
}  # fmt: skip


class ChannelAxes(TorchFunctionMode):
    """Follows the channels through everything that runs inside; `axis_of` says where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_last = False  # whether any operation wrote channels last

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Tensor) and 3 <= one.ndim <= MOST_AXES:
                axis = self._written_axis(function, args, kwargs or {}, one)
                self.seen_last |= one.ndim == 4 and axis == LAST
                _mark(one, axis)
        return result

    def axis_of(self, activation: Tensor, like: Any = None) -> int | None:
        """Return 1, 3 or OFF; None if unknown. `like`: the input of the module that made the activation.

        Operations that PyTorch does not show, such as custom autograd functions, are assumed to keep channels in place.
        """
        known = _axis(activation)
        if known is None and isinstance(like, Tensor) and like.shape == activation.shape:
            known = _axis(like)
        if known is None and not self.seen_last:
            return FIRST
        return known

    def _written_axis(self, function: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> int | None:
        read = [tensor for tensor in _tensors((*args, *kwargs.values())) if tensor.ndim >= 3]
        axes = {_axis(tensor) for tensor in read} - {None}
        if OFF in axes:
            return OFF if result.ndim >= 4 and function not in RESHAPES else None
        if function in WRITES_FIRST:
            return FIRST
        if function in WRITES_LAST:
            return result.ndim - 1
        if function in NORMS_LAST:
            shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
            return result.ndim - 1 if len(tuple(shape)) == 1 else _axis(args[0])
        if len(axes) != 1:
            return None
        (axis,) = axes
        if function in PERMUTES or function in SWAPS:
            return _moved(function, args, kwargs, axis)
        if function in RESHAPES and len(read) == 1 and read[0].shape != result.shape:
            return _reshaped(read[0], result, axis)
        if function in REORDERS and function not in RESHAPES:
            return None
        return axis if all(tensor.ndim == result.ndim for tensor in read if _axis(tensor) is not None) else None


def _reshaped(read: Tensor, result: Tensor, axis: int | None) -> int | None:
    """Return the channel axis after the axes of `read` were joined or split; OFF if the channels were split."""
    last = axis == read.ndim - 1
    kept = read.shape[-1] == result.shape[-1]
    if last and kept:
        return result.ndim - 1 if result.ndim in (*range(5), MOST_AXES) else None
    if last and read.ndim == 3 and read.shape[:2] == result.shape[:2] and result.ndim >= 4:
        return OFF  # (B, T, C) as (B, T, heads, d)
    if axis == FIRST and read.shape[:2] == result.shape[:2] and result.ndim in (3, 4, MOST_AXES):
        return FIRST  # (B, C, h, w) as (B, C, T) or in windows, and back
    places = read.shape[2:].numel()
    if axis == FIRST and result.ndim == 4 and result.shape[-1] == places != result.shape[2]:
        return OFF  # (B, C, h, w) as (B, heads, d, T)
    return None


def channels_first(activation: Tensor) -> torch.Size:
    """Return the shape (B, C, h, w) of an activation made inside `ChannelAxes`."""
    return (activation.permute(0, 3, 1, 2) if _axis(activation) == LAST else activation).shape


def _mark(tensor: Tensor, axis: int | None) -> None:
    tensor._channel_axis = axis  # type: ignore[attr-defined]  # lives and dies with the activation


def _axis(tensor: Tensor) -> int | None:
    axis: int | None = getattr(tensor, "_channel_axis", None)
    return axis


def _moved(function: Any, args: Any, kwargs: dict[str, Any], axis: int | None) -> int | None:
    """Return where `permute` or `transpose` puts the channels."""
    places = list(args[1:]) or list(kwargs.values())
    count = args[0].ndim
    order = list(range(count))
    if function in SWAPS:
        first, second = (int(place) % count for place in places)
        order[first], order[second] = order[second], order[first]
    else:
        order = [
            int(place) % count for place in (places[0] if isinstance(places[0], (tuple, list, torch.Size)) else places)
        ]
    return order.index(axis) if axis in order else None


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
