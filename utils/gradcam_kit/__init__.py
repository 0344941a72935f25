"""Show which part of a face a deepfake detector relied on.

    from gradcam_kit import explain          # installed with pip
    from utils.gradcam import explain        # inside DeepfakeBench or DF40, or this repository

Each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import old_paths

if TYPE_CHECKING:
    from .face import (
        AttentionMethod,
        Bank,
        Explanation,
        InputError,
        Recipe,
        RunError,
        TowerFamily,
        choose,
        explain,
        grad_cam,
        grad_cam_plus_plus,
        load,
        log_gradcam,
        read_images,
        register_checkpoint,
        register_method,
        register_reader,
        register_tower,
    )

__all__ = [
    "AttentionMethod",
    "Bank",
    "Explanation",
    "InputError",
    "Recipe",
    "RunError",
    "TowerFamily",
    "choose",
    "explain",
    "grad_cam",
    "grad_cam_plus_plus",
    "load",
    "log_gradcam",
    "read_images",
    "register_checkpoint",
    "register_method",
    "register_reader",
    "register_tower",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.face"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if __name__ == f"{old_paths.HOME}.gradcam_kit":  # the pip package never had old paths
    old_paths.install()
