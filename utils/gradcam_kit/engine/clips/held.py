"""Attention that uses its projections' weights without calling the modules: VideoMAE in transformers 4."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..towers.attention import Handle, Held, HeldAttention


@dataclass(frozen=True)
class ProjectedByWeight(HeldAttention):
    """`module` computes q and k by `F.linear` with the weights of `projections`, which hooks do not see."""

    module: nn.Module
    projections: tuple[nn.Module, ...]

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        weights = [projection.weight for projection in self.projections]
        usual, thread = self.module.forward, threading.get_ident()

        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return usual(*args, **kwargs)
            with _HeldLinear(held, weights):
                return usual(*args, **kwargs)

        before = vars(self.module).get("forward")
        vars(self.module)["forward"] = run
        return [_Undo(partial(_restore, self.module, before))]


@dataclass(frozen=True)
class _Undo:
    remove: Callable[[], None]


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward


class _HeldLinear(TorchFunctionMode):
    """Makes the result of `F.linear` with one of `weights` constant inside."""

    def __init__(self, held: Held, weights: Sequence[Any]) -> None:
        super().__init__()
        self.held, self.weights = held, weights

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        found = function(*args, **named)
        weight = named.get("weight", args[1] if len(args) > 1 else None) if function is F.linear else None
        is_held = isinstance(found, Tensor) and found.requires_grad and any(weight is one for one in self.weights)
        return self.held.constant(found) if is_held else found
