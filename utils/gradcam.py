"""The public face: `explain` for any detector."""

from __future__ import annotations

from utils.gradcam_kit.engine.methods import grad_cam
from utils.gradcam_kit.engine.methods import grad_cam_pp as grad_cam_plus_plus
from utils.gradcam_kit.explain.capture import Capture, capture
from utils.gradcam_kit.explain.one_pass import check_images, explain, explained_names, wants_both

__all__ = [
    "Capture",
    "capture",
    "check_images",
    "explain",
    "explained_names",
    "grad_cam",
    "grad_cam_plus_plus",
    "wants_both",
]
