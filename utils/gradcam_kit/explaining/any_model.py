"""Any model as a detector: from images to logits, with no class of the host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..engine.towers import find_tower, unwrapped
from .mixin import GradCAMMixin


class AnyModelWithGradCAM(GradCAMMixin):
    """A module that gives logits, of whatever kind of head, for images (B, 3, H, W); see `explaining.api.explain`.

    `config` holds the `gradcam_*` keys and `resolution`. Layer names are relative to the model or to the tower inside.
    Raises InputError where there is no tower of a known family.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = unwrapped(model)
        self.init_gradcam(config)
        self.weights_at_first = None  # the model came with its weights, or not: nobody here can tell

    @property
    def explained_tower(self) -> nn.Module:
        """The tower inside the model, or all of it."""
        return find_tower(self.model, self.gradcam.recipe.layers)

    def forward(self, data_dict: Mapping[str, Tensor], inference: bool = False) -> Any:
        """What the model returns."""
        return self.model(data_dict["image"])
