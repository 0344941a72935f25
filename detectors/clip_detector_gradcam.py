"""The host's CLIP detector with heatmaps: `clip_gradcam`."""

from __future__ import annotations

from typing import Any

from torch import nn

from detectors import DETECTOR
from utils.gradcam_kit.base.errors import InputError

from .clip_detector import CLIPDetector
from .gradcam_towers import CLIPTowerMixin


@DETECTOR.register_module(module_name="clip_gradcam")
class CLIPDetectorWithGradCAM(CLIPTowerMixin, CLIPDetector):
    """`CLIPDetector` with heatmaps and a configurable tower; losses, metrics and forward pass are the host's."""

    def build_loss(self, config: dict[str, Any]) -> nn.Module:
        if not isinstance(config.get("loss_func"), str):
            raise InputError(f"loss_func is {config.get('loss_func')!r}; allowed: the name of a loss, cross_entropy")
        if config["loss_func"] == "cross_entropy_loss":
            config = {**config, "loss_func": "cross_entropy"}
        return super().build_loss(config)
