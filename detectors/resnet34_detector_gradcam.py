"""The host's ResNet-34 detector with heatmaps: `resnet34_gradcam`."""

from __future__ import annotations

from detectors import DETECTOR

from .gradcam_towers import CNNMixin
from .resnet34_detector import ResnetDetector


@DETECTOR.register_module(module_name="resnet34_gradcam")
class ResnetDetectorWithGradCAM(CNNMixin, ResnetDetector):
    """`ResnetDetector` that can show where its decision came from."""

    last_convolution = "resnet.7"  # the last stage, after its last convolution met the shortcut
