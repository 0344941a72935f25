"""The host's Xception detector with heatmaps: `xception_gradcam`."""

from __future__ import annotations

from detectors import DETECTOR

from .gradcam_towers import CNNMixin
from .xception_detector import XceptionDetector


@DETECTOR.register_module(module_name="xception_gradcam")
class XceptionDetectorWithGradCAM(CNNMixin, XceptionDetector):
    """`XceptionDetector` that can show where its decision came from."""

    last_convolution = "conv4"
