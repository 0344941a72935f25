"""Hosts write `.cuda()` into constructors and forward passes; on another device it has to mean that one."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Iterator, TypeVar

import torch
from torch import Tensor, nn

from utils.cam.frozen import patched

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
