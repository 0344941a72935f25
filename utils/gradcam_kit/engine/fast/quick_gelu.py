"""CLIP's activation, which is written out in three operations, with a derivative in one (`derivatives.QuickGELU`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..frozen import patched
from .derivatives import QUICK_GELU, QuickGELU

_seen: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a module computes it


@contextmanager
def quick_gelu_in_one(model: nn.Module) -> Iterator[None]:
    """For a forward pass inside, in which each such module of `model` keeps its input alone. Its values stay the same.

    To be entered within `frozen_for_explaining`.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if is_quick_gelu(module):
                apply = functools.partial(_applied, module.forward)
                undo.enter_context(patched(module, "forward", apply))
        yield


def _applied(activate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return QuickGELU.apply(x, activate) if x.requires_grad and torch.is_grad_enabled() else activate(x)


def is_quick_gelu(module: nn.Module) -> bool:
    """Whether `module` computes x · sigmoid(1.702 x): by its class's name, and by five of its values."""
    if "quickgelu" not in type(module).__name__.lower() or [*module.children(), *module.parameters()]:
        return False
    if module not in _seen:
        probe = torch.linspace(-3, 3, 5, dtype=torch.float64)
        with torch.no_grad():
            _seen[module] = torch.allclose(module.forward(probe), probe * torch.sigmoid(QUICK_GELU * probe))
    return _seen[module]
