"""The public names. Users import only from here; the library itself never does.

`explain` and its companions need only torch. Modules that read files or draw are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base.errors import InputError, RunError
from .engine.attention_methods import AttentionMethod
from .engine.methods import grad_cam, register_method
from .engine.methods import grad_cam_pp as grad_cam_plus_plus
from .engine.recipe import Recipe
from .engine.towers import TowerFamily, register_tower
from .explaining.api import choose, explain
from .explaining.bank import Bank
from .explaining.explanation import Explanation

if TYPE_CHECKING:
    from .data.readers import register_reader
    from .explaining.training_log import log_gradcam
    from .model.checkpoint_families import register_checkpoint
    from .model.load import load_gradcam_detector as load
    from .model.load import read_images

LATER = {
    "load": (".model.load", "load_gradcam_detector"),
    "log_gradcam": (".explaining.training_log", "log_gradcam"),
    "read_images": (".model.load", "read_images"),
    "register_checkpoint": (".model.checkpoint_families", "register_checkpoint"),
    "register_reader": (".data.readers", "register_reader"),
}

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
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = LATER[name]
    return getattr(import_module(module, __package__), attribute)
