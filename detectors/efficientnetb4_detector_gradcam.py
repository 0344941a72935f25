"""The host's EfficientNet-B4 detector with heatmaps: `efficientnetb4_gradcam`."""

from __future__ import annotations

from detectors import DETECTOR

from .efficientnetb4_detector import EfficientDetector
from .gradcam_towers import CNNMixin


@DETECTOR.register_module(module_name="efficientnetb4_gradcam")
class EfficientDetectorWithGradCAM(CNNMixin, EfficientDetector):
    """`EfficientDetector` that can show where its decision came from."""

    last_convolution = "efficientnet._conv_head"
