"""A CLIP vision tower that the config describes, mixed in before the host's class."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from utils.gradcam_kit.explaining.mixin import GradCAMMixin
from utils.gradcam_kit.model.clip_tower import DEFAULT_TOWER, build_clip_tower
from utils.gradcam_kit.settings.config_values import backbone_config

# The published tower that a host has written its head for, by the head's width, where the config names none.
TOWERS_BY_WIDTH = {1024: DEFAULT_TOWER, 768: "openai/clip-vit-base-patch16"}


class CLIPTowerMixin(GradCAMMixin):
    """A host detector with `backbone` and `head`, whose CLIP tower `config["backbone_config"]` names.

    Its keys are those of `model.clip_tower`; without `name_or_path` the tower is the one that the host's head fits.
    """

    head: Any  # the host's nn.Linear, or a NormalisedHead
    classifier: Any  # the host's method

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)  # the host's constructor: backbone, head, loss
        self.backbone = self.build_tower(config)
        self.head = self.build_head(config, int(self.backbone.config.hidden_size))
        self.init_gradcam(config)

    def build_head(self, config: dict[str, Any], width: int) -> nn.Module:
        """The host's head, unless the tower has another width, or the weights are of another head."""
        wanted = backbone_config(config).get("head", {})  # of `model.clip_tower.fitted_config`
        logits = wanted.get("logits", 2)
        if wanted.get("normalised"):
            return NormalisedHead(width, wanted["projection"], logits)
        if (self.head.in_features, self.head.out_features) == (width, logits):
            return self.head
        return nn.Linear(width, logits)

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        """The host's. It takes the softmax of two logits; of another head only logits and features are returned."""
        if getattr(self.head, "out_features", 2) == 2:
            found: dict[str, Any] = super().forward(data_dict, inference)
            return found
        detector: Any = self
        features = detector.features(data_dict)
        return {"cls": detector.classifier(features), "feat": features}

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        """Nothing yet: the host's own tower would be downloaded here, before the width of its head is known."""
        return nn.Identity()

    def build_tower(self, config: dict[str, Any]) -> nn.Module:
        """The tower that the config describes. Raises InputError."""
        name = TOWERS_BY_WIDTH.get(self.head.in_features, DEFAULT_TOWER)
        return build_clip_tower({"name_or_path": name, **backbone_config(config)}, where="backbone_config")

    def features(self, data_dict: dict[str, Any]) -> Any:
        """The host's features; for images of another size than the tower's, with interpolated positions."""
        size = int(self.backbone.config.image_size)
        if data_dict["image"].shape[-2:] == (size, size):
            return super().features(data_dict)  # type: ignore[misc]  # the host's
        return self.backbone(data_dict["image"], interpolate_pos_encoding=True)["pooler_output"]


class NormalisedHead(nn.Module):
    """A linear head that reads features of length 1, projected before where `projection` is their number (not None)."""

    def __init__(self, width: int, projection: int | None, logits: int) -> None:
        super().__init__()
        self.projection = None if projection is None else nn.Linear(width, projection, bias=False)
        self.linear = nn.Linear(projection or width, logits)
        self.out_features = logits

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) → (B, logits)."""
        if self.projection is not None:
            features = self.projection(features)
        return self.linear(F.normalize(features, dim=1))
