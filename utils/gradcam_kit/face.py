"""The public face: everything that users need, and nothing else."""

from __future__ import annotations

from .base.errors import InputError, RunError
from .engine.methods import grad_cam
from .engine.methods import grad_cam_pp as grad_cam_plus_plus
from .engine.recipe import Recipe
from .explain.capture import Capture, capture
from .explain.explanation import Explanation
from .explain.one_pass import check_images, explain, explained_names, wants_both
from .explain.training_log import log_gradcam
from .model.load import read_images

__all__ = [
    "Capture",
    "Explanation",
    "InputError",
    "Recipe",
    "RunError",
    "capture",
    "check_images",
    "explain",
    "explained_names",
    "grad_cam",
    "grad_cam_plus_plus",
    "log_gradcam",
    "read_images",
    "wants_both",
]
