"""The public face: everything that a user imports, and nothing that the library itself does."""

from __future__ import annotations

from .base.errors import InputError, RunError
from .engine.attention_methods import AttentionMethod
from .engine.methods import grad_cam, register_method
from .engine.methods import grad_cam_pp as grad_cam_plus_plus
from .engine.recipe import Recipe
from .engine.towers import register_tower
from .explain.api import choose, explain
from .explain.explanation import Explanation
from .explain.training_log import log_gradcam
from .model.load import load_gradcam_detector as load
from .model.load import read_images

__all__ = [
    "AttentionMethod",
    "Explanation",
    "InputError",
    "Recipe",
    "RunError",
    "choose",
    "explain",
    "grad_cam",
    "grad_cam_plus_plus",
    "load",
    "log_gradcam",
    "read_images",
    "register_method",
    "register_tower",
]
