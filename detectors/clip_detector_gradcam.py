"""The host's CLIP detector with heatmaps: `clip_gradcam`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detectors import DETECTOR
from utils.clip_tower import build_clip_tower
from utils.errors import InputError

from .clip_detector import CLIPDetector
from .gradcam_mixin import GradCAMMixin


@DETECTOR.register_module(module_name="clip_gradcam")
class CLIPDetectorWithGradCAM(GradCAMMixin, CLIPDetector):
    """`CLIPDetector` whose tower comes from the config, and which can show where its decision came from.

    Losses, metrics, forward pass and results are the host's own. `config["backbone_config"]` may hold `name_or_path`,
    `architecture` and `pretrained` (see `utils.clip_tower`); the `gradcam_*` keys are in README_gradcam.md.
    """

    backbone: Any

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        width = int(self.backbone.config.hidden_size)
        if self.head.in_features != width:  # the host writes its head for one tower only
            self.head = nn.Linear(width, 2)
        self.init_gradcam(config)

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        backbone_config = config.get("backbone_config") or {}
        if not isinstance(backbone_config, dict):
            raise InputError(f"config: backbone_config is {backbone_config!r}; allowed: keys with values")
        return build_clip_tower(backbone_config, where="backbone_config")

    def build_loss(self, config: dict[str, Any]) -> nn.Module:
        if config.get("loss_func") == "cross_entropy_loss":
            config = {**config, "loss_func": "cross_entropy"}
        return super().build_loss(config)

    def features(self, data_dict: dict[str, Tensor]) -> Tensor:
        size = int(self.backbone.config.image_size)
        if data_dict["image"].shape[-2:] == (size, size):
            return super().features(data_dict)
        # The host's call refuses any other size; here the position embeddings are interpolated to it.
        return self.backbone(data_dict["image"], interpolate_pos_encoding=True)["pooler_output"]
