"""The host's capsule network with heatmaps: `capsule_net_gradcam`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detectors import DETECTOR

from .capsule_net_detector import CapsuleNetDetector
from .gradcam_registered import RegisteredMixin


@DETECTOR.register_module(module_name="capsule_net_gradcam")
class CapsuleNetDetectorWithGradCAM(RegisteredMixin, CapsuleNetDetector):
    """`CapsuleNetDetector` explained through "classes", because its "cls" is detached from the network.

    "classes" (B, d, 2) is the softmax over the two output capsules, for each of their d entries; "cls" is its mean over
    d. So the scores are probabilities: the network has no logits.
    """

    registered_name = "capsule_net"

    def gradcam_layers(self) -> list[str]:
        """Return the features that all ten capsules read; the last activation belongs to one capsule."""
        return list(self.gradcam.recipe.layers or ["vgg_ext"])

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the host's forward pass, with "cls" attached to the network."""
        prediction = super().evaluated(data_dict)
        return {**prediction, "cls": prediction["classes"].mean(dim=1)}
