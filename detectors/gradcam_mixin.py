"""`GradCAMMixin` under its path of version 1.1, kept for one more version."""

import warnings

from utils.gradcam_kit.explaining.mixin import GradCAMMixin

warnings.warn("detectors.gradcam_mixin is now utils.gradcam_kit.explaining.mixin", DeprecationWarning, stacklevel=2)

__all__ = ["GradCAMMixin"]
