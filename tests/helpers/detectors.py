"""Small random CLIP towers and detectors, quick enough to explain hundreds of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

BLOCKS, PATCH, PIXELS = 4, 16, 64


ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "image_size": PIXELS,
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The config of a detector with four blocks on a 4 x 4 grid of patches."""
    config = {"loss_func": "cross_entropy", "gradcam_enabled": True, "backbone_config": {"architecture": ARCHITECTURE}}
    return {**config, **changes}


def tiny_detector(seed: int = 0, **changes: Any) -> CLIPDetectorWithGradCAM:
    """A detector whose weights are spread widely enough that maps differ from image to image."""
    torch.manual_seed(seed)
    model = CLIPDetectorWithGradCAM(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def images(count: int, seed: int = 1, pixels: int | tuple[int, int] = PIXELS) -> torch.Tensor:
    """Normalised random images (count, 3, H, W)."""
    size = (pixels, pixels) if isinstance(pixels, int) else pixels
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


class AnyHead(CLIPDetectorWithGradCAM):
    """The CLIP detector with a head of any number of logits, and a forward pass that returns nothing else."""

    def __init__(self, config: dict[str, Any], logits: int = 2) -> None:
        super().__init__(config)
        self.head = nn.Linear(ARCHITECTURE["hidden_size"], logits)

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        return {"cls": self.classifier(self.features(data_dict))}


def spread(model: Any, seed: int = 0) -> Any:
    """Weights wide enough that maps differ from image to image; the model in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()
