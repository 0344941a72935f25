"""Any model from images to logits as a detector, without a class of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..engine.towers import find_tower, unwrapped
from .mixin import GradCAMMixin


class AnyModelWithGradCAM(GradCAMMixin):
    """Wraps any module that returns logits for images (B, 3, H, W); see `explaining.api.explain`.

    `config` holds the `gradcam_*` keys and `resolution`. Layer names are relative to the model or to its tower. Raises
    InputError if no tower of a known family is inside.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = unwrapped(model)
        self.init_gradcam(config)
        self.weights_at_first = None  # unknown whether the model came with trained weights

    @property
    def explained_tower(self) -> nn.Module:
        """The tower inside the model, or the whole model."""
        return find_tower(self.model, self.gradcam.recipe.layers)

    def forward(self, data_dict: Mapping[str, Tensor], inference: bool = False) -> Any:
        """Run the model on `data_dict["image"]`."""
        return self.model(data_dict["image"])
