"""The CLIP detector: a vision tower and a linear head. Stand-in for the host's file; never copied into a host tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detectors import DETECTOR

LOSSES = {"cross_entropy": nn.CrossEntropyLoss}


@DETECTOR.register_module(module_name="clip")
class CLIPDetector(nn.Module):
    """CLIP ViT-L/14 from the hub, its pooled CLS token, and a linear head with two logits: real (0), fake (1)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.build_backbone(config)
        self.head = nn.Linear(1024, 2)
        self.loss_func = self.build_loss(config)

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        from transformers import CLIPModel  # imported only to download a tower

        return CLIPModel.from_pretrained("openai/clip-vit-large-patch14").vision_model

    def build_loss(self, config: dict[str, Any]) -> nn.Module:
        return LOSSES[config["loss_func"]]()

    def features(self, data_dict: dict[str, Tensor]) -> Tensor:
        """Return the features (B, 1024) of `data_dict["image"]` (B, 3, H, W)."""
        return self.backbone(data_dict["image"])["pooler_output"]

    def classifier(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, data_dict: dict[str, Tensor], inference: bool = False) -> dict[str, Tensor]:
        """Return `{"cls": logits (B, 2), "prob": probability of fake (B,), "feat": features (B, 1024)}`."""
        features = self.features(data_dict)
        logits = self.classifier(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}

    def get_losses(self, data_dict: dict[str, Tensor], pred_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"overall": self.loss_func(pred_dict["cls"], data_dict["label"])}

    def get_train_metrics(self, data_dict: dict[str, Tensor], pred_dict: dict[str, Tensor]) -> dict[str, float]:
        correct = pred_dict["cls"].detach().argmax(dim=1) == data_dict["label"]
        return {"acc": torch.mean(correct.float()).item()}
