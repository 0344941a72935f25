"""The public face: `explain` for any detector."""

from __future__ import annotations

from utils.gradcam_kit.explain.capture import Capture, capture
from utils.gradcam_kit.explain.one_pass import check_images, explain, explained_names, wants_both

__all__ = ["Capture", "capture", "check_images", "explain", "explained_names", "wants_both"]
