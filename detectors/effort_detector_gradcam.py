"""The host's Effort detector with heatmaps: `effort_gradcam`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from detectors import DETECTOR
from utils.gradcam_kit.engine.frozen import patched
from utils.gradcam_kit.settings.config_values import backbone_config

from .effort_detector import EffortDetector, apply_svd_residual_to_self_attn
from .gradcam_towers import CLIPTowerMixin


@DETECTOR.register_module(module_name="effort_gradcam")
class EffortDetectorWithGradCAM(CLIPTowerMixin, EffortDetector):
    """`EffortDetector` (attention weights as a fixed part plus a residual) with heatmaps.

    The tower is the one in `backbone_config`, else the host's own, from the folder in the host's code.
    """

    # Fixed factors that only some versions of the host save; no forward pass reads them.
    unread_weights = ("S_r", "U_r", "V_r")

    def build_tower(self, config: dict[str, Any]) -> nn.Module:
        network = backbone_config(config)
        if not {"name_or_path", "architecture", "pretrained"} & set(network):
            return EffortDetector.build_backbone(self, config)
        tower = super().build_tower(config)
        width = int(tower.config.hidden_size)  # type: ignore[union-attr,arg-type]  # a CLIP tower's config
        rank = width - int(network.get("residual_rank", 1))  # from the checkpoint, see model.clip_tower.fitted_config
        pretrained = network.get("pretrained", "architecture" not in network)
        with nullcontext() if pretrained else patched(torch.linalg, "svd", split_without_svd):
            return apply_svd_residual_to_self_attn(tower, r=rank)


def split_without_svd(weight: Tensor, full_matrices: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Split a random `weight` (out, in) without computing an SVD: factors of the same shapes with the same product."""
    rows, columns = weight.shape
    ones, unit = weight.new_ones(min(rows, columns)), torch.eye(min(rows, columns), dtype=weight.dtype)
    return (weight.clone(), ones, unit) if rows >= columns else (unit, ones, weight.clone())
