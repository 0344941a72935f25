"""Heatmaps for any detector that the host registers: the class `<name>_gradcam`, created at import.

In evaluation the detector gets the other inputs of the host's dataset, and "prob" is the softmax of its two logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from utils.gradcam_kit.engine.towers import find_tower
from utils.gradcam_kit.explaining.mixin import GradCAMMixin
from utils.gradcam_kit.explaining.subject import Subject
from utils.gradcam_kit.model.host.inputs import HostInputs
from utils.gradcam_kit.model.host.patches import batch_of_one_kept, cuda_means, no_pretrained_weights
from utils.gradcam_kit.settings.config_values import backbone_config

SUFFIX = "_gradcam"


class RegisteredMixin(GradCAMMixin):
    """A mixin before a host's class. With `backbone_config.pretrained: false` the constructor loads no weights."""

    registered_name: str  # the host's name
    host_module = ""  # module of the host's class
    loses_batch_of_one = False  # whether its forward pass fails with a single image

    def __init__(self, config: dict[str, Any]) -> None:
        wanted = backbone_config(config).get("pretrained", True)
        with nullcontext() if wanted else no_pretrained_weights(self.registered_name, self.host_module):
            super().__init__(config)
        self.init_gradcam(config)

    @property
    def explained_tower(self) -> nn.Module:
        """The transformer inside, else the detector itself, because its head may hold the last feature maps."""
        return find_tower(self, self.gradcam.recipe.layers)

    def forward(self, data_dict: Mapping[str, Any], inference: bool = False) -> dict[str, Tensor]:
        """Run the host's forward pass. Raises InputError if it reads data that a test set lacks."""
        if self.training:
            return super().forward(data_dict, inference=inference)  # the host's
        image = data_dict["image"]
        if not isinstance(data_dict, HostInputs):
            data_dict = HostInputs(data_dict, self.registered_name, self.gradcam.mean, self.gradcam.std)
        alone = self.loses_batch_of_one and len(image) == 1
        with cuda_means(image.device), batch_of_one_kept() if alone else nullcontext():
            prediction = super().forward(data_dict, inference=inference)  # the host's
        if "prob" not in prediction and prediction["cls"].shape[-1] == 2:
            prediction["prob"] = prediction["cls"].softmax(dim=1)[:, 1]
        return dict(prediction)

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the forward pass as the host's test.py does; return its tensors."""
        prediction = self(data_dict, inference=True)
        return {key: value for key, value in prediction.items() if isinstance(value, Tensor)}

    def as_subject(self) -> Subject:
        """Return the Subject, whose errors name the detector."""
        return replace(super().as_subject(), name=f"detector {self.registered_name!r}")


def with_gradcam(name: str, host_class: type) -> type:
    """Create the host's class with heatmaps."""
    members = {
        "registered_name": name,
        "host_module": host_class.__module__,
        "__module__": __name__,
        "__doc__": f"The host's `{name}` with heatmaps.",
    }
    return type(f"{host_class.__name__}WithGradCAM", (RegisteredMixin, host_class), members)


def register_all(registry: Any) -> None:
    """Register `<name>_gradcam` for every detector in the host's registry that lacks it."""
    for name, host_class in list(registry.data.items()):
        known = name.endswith(SUFFIX) or f"{name}{SUFFIX}" in registry.data
        if not known and isinstance(host_class, type) and issubclass(host_class, nn.Module):
            registry.register_module(module_name=f"{name}{SUFFIX}")(with_gradcam(name, host_class))
