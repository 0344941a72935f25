"""The host's capsule network with heatmaps: `capsule_net_gradcam`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detectors import DETECTOR

from .capsule_net_detector import CapsuleNetDetector
from .gradcam_registered import RegisteredMixin


@DETECTOR.register_module(module_name="capsule_net_gradcam")
class CapsuleNetDetectorWithGradCAM(RegisteredMixin, CapsuleNetDetector):
    """`CapsuleNetDetector`, which detaches its "cls" from the network, explained through "classes".

    "classes" (B, d, 2) is the softmax over the two output capsules, entry by entry of their d-dimensional outputs;
    "cls" is its mean over d. So these scores are probabilities: the network has no logits.
    """

    registered_name = "capsule_net"

    def gradcam_layers(self) -> list[str]:
        """The features that all ten capsules read; the last activation would be one capsule's own."""
        return list(self.gradcam.recipe.layers or ["vgg_ext"])

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the host's, with the same "cls" as a function of the network."""
        prediction = super().evaluated(data_dict)
        return {**prediction, "cls": prediction["classes"].mean(dim=1)}
