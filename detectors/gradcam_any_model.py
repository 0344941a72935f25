"""`AnyModelWithGradCAM` under its path of version 1.1, kept for one more version."""

import warnings

from utils.gradcam_kit.explaining.any_model import AnyModelWithGradCAM

warnings.warn(
    "detectors.gradcam_any_model is now utils.gradcam_kit.explaining.any_model", DeprecationWarning, stacklevel=2
)

__all__ = ["AnyModelWithGradCAM"]
