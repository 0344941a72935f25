"""Checks of the images that a caller gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..engine.checks import Checks

Batch = Mapping[str, Any]  # tensors by name, including "image", as in the hosts' data_dict


def as_batch(images: Any, where: str = "data_dict") -> Batch:
    """Convert a mapping with `image`, a pair of images and labels, or only images (B, 3, H, W) to a batch.

    Labels may be a list or an array. Raises InputError for anything else.
    """
    if isinstance(images, Tensor):
        return {"image": images}
    if isinstance(images, (list, tuple)) and len(images) in (1, 2) and isinstance(images[0], Tensor):
        images = dict(zip(("image", "label"), images, strict=False))  # the form of most data loaders
    if not isinstance(images, Mapping):
        raise InputError(
            f"{where} is {type(images).__name__}: give a tensor (B, 3, H, W), or {{'image': such a tensor}};"
            " utils.gradcam.read_images makes one from files"
        )
    if images.get("image") is None:
        raise InputError(f"{where}['image'] is missing: give {{'image': tensor of shape (B, 3, H, W)}}")
    label = images.get("label")
    if label is None or isinstance(label, Tensor):
        return images
    try:
        return {**images, "label": torch.as_tensor(label)}
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{where}['label'] is {label!r}: give one label per image, 0 for real") from None


def as_batches(given: Any, where: str = "data_dict") -> list[Any]:
    """Convert one batch, or several, each in any form that `as_batch` accepts, to a list."""
    several = isinstance(given, Iterable) and not isinstance(given, (Tensor, Mapping, str))
    return list(given) if several else [given]


def check_images(images: Any, what: str) -> None:
    """Raise InputError unless `images` are finite (B, 3, H, W); `what` names them in errors."""
    check_shape(images, what)
    _check_pixels_now(images, what)


def _check_pixels_now(images: Tensor, what: str) -> None:
    checks = Checks()
    check_pixels(images, what, checks)
    checks.read()


def check_pixels(
    images: Tensor, what: str, checks: Checks, further: Callable[[float, float], None] | None = None
) -> None:
    """Let `checks` raise InputError for NaN or infinite pixels. `further` gets the smallest and the largest."""

    def tell(ends: Tensor) -> None:
        least, largest = ends.tolist()
        if not (math.isfinite(least) and math.isfinite(largest)):
            bad = (~torch.isfinite(images).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise InputError(f"{what} holds NaN or infinite pixels in image(s) {bad}: check how they were normalised")
        if further is not None:
            further(least, largest)

    checks.append((torch.stack(images.detach().aminmax()), tell))


def are_clips(images: Any) -> bool:
    """True for clips (B, T, 3, H, W)."""
    return isinstance(images, Tensor) and images.ndim == 5


def _check_dense(images: Any, what: str) -> None:
    if isinstance(images, Tensor) and (images.is_nested or images.layout != torch.strided):
        kind = "nested" if images.is_nested else str(images.layout)
        raise InputError(f"{what} is a {kind} tensor: give a dense one, by to_dense() or torch.stack()")


def check_clips(clips: Any, what: str) -> None:
    """Raise InputError unless `clips` is a dense batch of finite floating point clips (B, T, 3, H, W)."""
    _check_dense(clips, what)
    if not isinstance(clips, Tensor) or clips.ndim != 5 or clips.shape[2] != 3 or not clips.is_floating_point():
        found = f"shape {tuple(clips.shape)}" if isinstance(clips, Tensor) else type(clips).__name__
        raise InputError(f"{what} has {found}: expected normalised floating point clips of shape (B, T, 3, H, W)")
    if not clips.shape[0] or not clips.shape[1]:
        raise InputError(f"{what} is an empty batch: give at least one clip of at least one frame")
    _check_pixels_now(clips, what)


def check_shape(images: Any, what: str) -> None:
    """Raise InputError unless `images` is a dense batch of floating point images (B, 3, H, W)."""
    _check_dense(images, what)
    if not isinstance(images, Tensor):
        raise InputError(f"{what} is {type(images).__name__}: expected a tensor of shape (B, 3, H, W)")
    if images.ndim == 5:
        raise InputError(
            f"{what} has shape {tuple(images.shape)}: this model reads images, not clips;"
            " give one batch of frames (B, 3, H, W), for example images.flatten(0, 1)"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            f"{what} has shape {tuple(images.shape)} and type {images.dtype}:"
            " expected normalised floating point images of shape (B, 3, H, W)"
        )
    if images.shape[0] == 0:
        raise InputError(f"{what} is an empty batch: give at least one image")
