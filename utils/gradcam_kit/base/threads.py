"""Hooks that run in one thread only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return `hook` restricted to the calling thread; in other threads it does nothing.

    PyTorch calls a module's hook in every thread that runs the module, for example in a web server that predicts while
    an image is explained. Each hook of this package goes through this function or checks the thread itself.
    """
    thread = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == thread else None


@contextmanager
def hooked(modules: Iterable[tuple[Any, Any]], hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """Call `hook(key, module, inputs, output)` whenever one of `modules`, pairs (key, module), runs in this thread.

    With `before` it is called before the module runs, without an output. What it returns replaces output or inputs.
    """
    with ExitStack() as hooks:
        for key, module in modules:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            hooks.callback(register(in_this_thread(partial(hook, key))).remove)
        yield
