"""CLIP's activation, which is written out in three operations, with a derivative in one (`derivatives.QuickGELU`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..frozen import patched
from .derivatives import QUICK_GELU, QuickGELU


@contextmanager
def quick_gelu_in_one(modules: Iterable[nn.Module]) -> Iterator[None]:
    """For a forward pass inside, in which each of these (`is_quick_gelu`) keeps its input alone, with the same values.

    To be entered within `frozen_for_explaining`.
    """
    with ExitStack() as undo:
        for module in modules:
            undo.enter_context(patched(module, "forward", functools.partial(_applied, module.forward)))
        yield


def _applied(activate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return QuickGELU.apply(x, activate) if x.requires_grad and torch.is_grad_enabled() else activate(x)


def is_quick_gelu(module: nn.Module) -> bool:
    """Whether `module` computes x · sigmoid(1.702 x): by its class's name, and by five of its values."""
    if "quickgelu" not in type(module).__name__.lower() or [*module.children(), *module.parameters()]:
        return False
    probe = torch.linspace(-3, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        return torch.allclose(module.forward(probe), probe * torch.sigmoid(QUICK_GELU * probe))
