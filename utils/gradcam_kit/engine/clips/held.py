"""Attention that uses its projections' weights without calling the modules: VideoMAE in transformers 4."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..frozen import replaced_forward
from ..towers.attention import Handle, Held, HeldAttention


@dataclass(frozen=True)
class ProjectedByWeight(HeldAttention):
    """`module` computes q and k by `F.linear` with the weights of `projections`, which hooks do not see."""

    module: nn.Module
    projections: tuple[nn.Module, ...]

    def constant_queries_and_keys(self, held: Held) -> list[Handle]:
        weights, thread = [projection.weight for projection in self.projections], threading.get_ident()

        def run(module: nn.Module, usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with _HeldLinear(held, weights) if threading.get_ident() == thread else nullcontext():
                return usual(*args, **kwargs)

        replaced = _Replaced()
        replaced.enter_context(replaced_forward([self.module], run))
        return [replaced]


class _Replaced(ExitStack):
    """Replaced forward passes, undone like a hook."""

    def remove(self) -> None:
        self.close()


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
