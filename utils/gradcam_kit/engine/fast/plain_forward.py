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
            if child is not None and "_orig_mod" in child._modules:
                undo.callback(module._modules.__setitem__, name, child)
                module._modules[name] = child._modules["_orig_mod"]
        if getattr(module, "_compiled_call_impl", None) is not None:  # of module.compile()
            undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = None


def _without_checkpointing(undo: ExitStack) -> None:
    """`torch.utils.checkpoint.checkpoint` runs what it is given, under whatever name a module has imported it."""

    class Run:
        """Stands for the function that re-enters autograd."""

        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    def run_once(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield  # before the function runs; it ends when the function has

    module: Any = torch.utils.checkpoint
    for name, value in (("CheckpointFunction", Run), ("_checkpoint_without_reentrant_generator", run_once)):
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


def _without_fast_path(undo: ExitStack) -> None:
    """PyTorch has this switch from 2.2 on. Before, an error says that such a layer does not run."""
    switch: Any = getattr(torch.backends, "mha", None)
    if switch is not None:
        undo.callback(switch.set_fastpath_enabled, switch.get_fastpath_enabled())
        switch.set_fastpath_enabled(False)
