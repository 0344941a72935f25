"""A mixin for hosts' CLIP detectors that builds the vision tower from the config."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from utils.gradcam_kit.explaining.mixin import GradCAMMixin
from utils.gradcam_kit.model.clip_tower import DEFAULT_TOWER, build_clip_tower
from utils.gradcam_kit.settings.config_values import backbone_config

# Width of a host's head → published tower, if the config names none.
TOWERS_BY_WIDTH = {1024: DEFAULT_TOWER, 768: "openai/clip-vit-base-patch16"}


class CLIPTowerMixin(GradCAMMixin):
    """A mixin for a host detector with `backbone` and `head`: `config["backbone_config"]` describes its CLIP tower.

    The keys are those of `model.clip_tower`. Without `name_or_path` the tower has the width of the host's head.
    """

    head: Any  # the host's nn.Linear, or a NormalisedHead
    classifier: Any  # the host's method

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)  # the host's constructor: backbone, head, loss
        self.backbone = self.build_tower(config)
        self.head = self.build_head(config, int(self.backbone.config.hidden_size))
        self.init_gradcam(config)

    def build_head(self, config: dict[str, Any], width: int) -> nn.Module:
        """Return the host's head, unless the tower's width or the weights need another one."""
        wanted = backbone_config(config).get("head", {})  # from `model.clip_tower.fitted_config`
        logits = wanted.get("logits", 2)
        if wanted.get("normalised"):
            return NormalisedHead(width, wanted["projection"], logits)
        if (self.head.in_features, self.head.out_features) == (width, logits):
            return self.head
        return nn.Linear(width, logits)

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        """Run the host's forward pass. For a head without two logits, return only logits and features."""
        if getattr(self.head, "out_features", 2) == 2:
            found: dict[str, Any] = super().forward(data_dict, inference)
            return found
        detector: Any = self
        features = detector.features(data_dict)
        return {"cls": detector.classifier(features), "feat": features}

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        """Return a placeholder: the host would download its tower here, before the head's width is known."""
        return nn.Identity()

    def build_tower(self, config: dict[str, Any]) -> nn.Module:
        """Build the tower that the config describes. Raises InputError."""
        name = TOWERS_BY_WIDTH.get(self.head.in_features, DEFAULT_TOWER)
        return build_clip_tower({"name_or_path": name, **backbone_config(config)}, where="backbone_config")

    def features(self, data_dict: dict[str, Any]) -> Any:
        """Return the host's features (B, width); for another image size, positions are interpolated."""
        size = int(self.backbone.config.image_size)
        if data_dict["image"].shape[-2:] == (size, size):
            return super().features(data_dict)  # type: ignore[misc]  # the host's
        return self.backbone(data_dict["image"], interpolate_pos_encoding=True)["pooler_output"]


class NormalisedHead(nn.Module):
    """A linear head on features of unit length. `projection`: project to so many features first; None: do not."""

    def __init__(self, width: int, projection: int | None, logits: int) -> None:
        super().__init__()
        self.projection = None if projection is None else nn.Linear(width, projection, bias=False)
        self.linear = nn.Linear(projection or width, logits)
        self.out_features = logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, logits) for features (B, width)."""
        if self.projection is not None:
            features = self.projection(features)
        return self.linear(F.normalize(features, dim=1))
