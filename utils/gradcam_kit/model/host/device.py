"""Two habits of hosts' code, made harmless: `.cuda()` whatever the device, `.squeeze()` whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...engine.frozen import patched

Movable = TypeVar("Movable", Tensor, nn.Module)


@contextmanager
def cuda_means(device: torch.device) -> Iterator[None]:
    """Inside, `x.cuda()` of a tensor or module is `x.to(device)`, unless that is the current CUDA device anyway."""
    if device.type == "cuda" and device.index in (None, torch.cuda.current_device()):
        yield
        return

    def to_device(this: Movable, *where: Any, **options: Any) -> Movable:
        return this.to(device)

    with ExitStack() as patches:
        for owner in (Tensor, nn.Module):
            patches.enter_context(patched(owner, "cuda", to_device))
        yield


@contextmanager
def batch_of_one_kept() -> Iterator[None]:
    """Inside, `x.squeeze()` without a dimension keeps the first one, which is how some code loses a batch of one."""
    original = Tensor.squeeze

    def squeeze(this: Tensor, *dims: Any, **options: Any) -> Tensor:
        if dims or options or this.ndim == 0:
            return original(this, *dims, **options)
        return this.reshape(this.shape[0], *(size for size in this.shape[1:] if size != 1))

    with patched(Tensor, "squeeze", squeeze):
        yield
