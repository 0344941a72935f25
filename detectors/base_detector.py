"""What every detector offers. Stand-in for the host's file of the same name; never copied into a host tree."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn


class AbstractDetector(nn.Module, abc.ABC):
    """A network that calls a face crop real (class 0) or fake (class 1)."""

    @abc.abstractmethod
    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        """The network that turns images into features."""

    @abc.abstractmethod
    def build_loss(self, config: dict[str, Any]) -> nn.Module:
        """The loss that `config["loss_func"]` names."""

    @abc.abstractmethod
    def features(self, data_dict: dict[str, Tensor]) -> Tensor:
        """`data_dict["image"]` (B, 3, H, W) → features (B, C)."""

    @abc.abstractmethod
    def classifier(self, features: Tensor) -> Tensor:
        """Features (B, C) → logits (B, 2)."""

    @abc.abstractmethod
    def forward(self, data_dict: dict[str, Tensor], inference: bool = False) -> dict[str, Tensor]:
        """`{"cls": logits (B, 2), "prob": probability of fake (B,), "feat": features (B, C)}`."""

    @abc.abstractmethod
    def get_losses(self, data_dict: dict[str, Tensor], pred_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"overall": scalar}` for the prediction of one batch."""

    @abc.abstractmethod
    def get_train_metrics(self, data_dict: dict[str, Tensor], pred_dict: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of one training batch, by name."""
