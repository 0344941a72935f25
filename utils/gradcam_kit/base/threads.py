"""A hook that another thread's forward pass does not meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` for the forward passes of the thread that calls this. Those of others run as if there were none.

    A hook stands on the module, so every thread that runs the module meets it: a web server that predicts while an
    image is explained. Each hook of this package is registered through this function, or asks for the thread itself.
    """
    thread = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == thread else None
