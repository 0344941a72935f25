"""The forward pass as hooks have to see it: each module run once, by Python.

Three ways in which PyTorch passes hooks by, or runs a module twice, are off within a call and as they were afterwards:
`torch.compile`, gradient checkpointing, and the fused kernels of `nn.TransformerEncoderLayer` in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.utils.checkpoint
from torch import nn


@contextmanager
def plain_forward(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a model of these modules runs one by one. Checkpointing and fast path are off for the whole process."""
    with ExitStack() as undo:
        _without_compiled(modules, undo)
        _without_checkpointing(undo)
        _without_fast_path(undo)
        yield


def _without_compiled(modules: Sequence[nn.Module], undo: ExitStack) -> None:
    """The modules inside what `torch.compile` has made of parts of them."""
    for module in modules:
        for name, child in list(module._modules.items()):
            if hasattr(child, "_orig_mod"):
                undo.callback(module._modules.__setitem__, name, child)
                module._modules[name] = child._orig_mod  # type: ignore[union-attr,assignment]  # it has it
        if getattr(module, "_compiled_call_impl", None) is not None:  # of module.compile()
            undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = None


def _without_checkpointing(undo: ExitStack) -> None:
    """`torch.utils.checkpoint.checkpoint` runs what it is given, under whatever name a module has imported it.

    What it calls is exchanged, by the names that PyTorch 1.11 to 2.0 and those after it have for it.
    """

    class Run:
        """Runs the function, with and without re-entering autograd."""

        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

        @staticmethod
        def of_1(function: Callable[..., Any], preserve: bool = True, *args: Any, **kwargs: Any) -> Any:
            for at in ("context_fn", "determinism_check", "debug"):
                kwargs.pop(at, None)
            return function(*args, **kwargs)

        @staticmethod
        def of_2(*args: Any, **kwargs: Any) -> Iterator[None]:
            yield  # before the function runs; it ends when the function has

    plain = {
        "CheckpointFunction": Run,
        "_checkpoint_without_reentrant": Run.of_1,
        "_checkpoint_without_reentrant_generator": Run.of_2,
    }
    module: Any = torch.utils.checkpoint
    for name, value in plain.items():
        if hasattr(module, name):
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)


def _without_fast_path(undo: ExitStack) -> None:
    """PyTorch before 2.0 has no such switch; there a layer that was passed by is said not to run."""
    switch: Any = getattr(torch.backends, "mha", None)
    if switch is not None:
        undo.callback(switch.set_fastpath_enabled, switch.get_fastpath_enabled())
        switch.set_fastpath_enabled(False)
