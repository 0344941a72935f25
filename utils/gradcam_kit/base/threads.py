"""Hooks that run in one thread only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return `hook` restricted to the calling thread; in other threads it does nothing.

    PyTorch calls a module's hook in every thread that runs the module, for example in a web server that predicts while
    an image is explained. Each hook of this package goes through this function or checks the thread itself.
    """
    thread = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == thread else None
