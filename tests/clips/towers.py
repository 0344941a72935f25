"""Small networks that read clips (B, T, 3, H, W), one or two of each family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    SwinConfig,
    SwinModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
    XCLIPVisionConfig,
    XCLIPVisionModel,
)

FRAMES, SIZE, PATCH, WIDTH = 4, 32, 8, 24
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
SMALL |= {"image_size": SIZE, "num_frames": FRAMES, "patch_size": PATCH}


class Volume(nn.Module):
    """3-D convolutions, a mean over time and space, one linear layer: (B, 3, T, H, W) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.BatchNorm3d(8), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv3d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, clips: Tensor) -> Tensor:
        volume = self.last(self.first(clips.transpose(1, 2)))
        logits: Tensor = self.head(volume.mean((2, 3, 4)))
        return logits


class Folded(nn.Module):
    """2-D convolutions of each frame, and the mean of the frames' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.fc = nn.Linear(16, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.frames(clips.flatten(0, 1)).mean((2, 3)))
        return logits.unflatten(0, clips.shape[:2]).mean(1)


class VideoMAE(nn.Module):
    """As DeepfakeBench's: the mean of all tokens, a norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VideoMAEModel(VideoMAEConfig(**SMALL))
        self.fc_norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.fc_norm(self.backbone(clips)[0].mean(1)))
        return logits


class TimeSformer(nn.Module):
    """As DeepfakeBench's: a linear layer on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = TimesformerModel(TimesformerConfig(**SMALL)), nn.Linear(WIDTH, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(clips)[0][:, 0])
        return logits


class XClip(nn.Module):
    """As DeepfakeBench's: frames in the batch, the mean of their class tokens, a norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        mit = {"mit_hidden_size": WIDTH, "mit_intermediate_size": 32, "mit_num_attention_heads": 3}
        self.backbone = XCLIPVisionModel(XCLIPVisionConfig(**SMALL, **mit))
        self.fc_norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, clips: Tensor) -> Tensor:
        pooled = self.backbone(clips.flatten(0, 1)).pooler_output.unflatten(0, clips.shape[:2])
        logits: Tensor = self.head(self.fc_norm(pooled.mean(1)))
        return logits


class Thumbnail(nn.Module):
    """As TALL: a 2 × 2 picture of four frames, which a Swin reads. Its last stage has cells on several frames."""

    def __init__(self) -> None:
        super().__init__()
        self.thumbnail_rows = 2
        sizes = {"image_size": 2 * SIZE, "patch_size": PATCH, "window_size": 1}  # of its last stage, one cell
        self.backbone = SwinModel(SwinConfig(**sizes, embed_dim=12, depths=[2, 2, 2, 1], num_heads=[2, 2, 2, 2]))
        self.head = nn.Linear(12 * 8, 2)

    def forward(self, clips: Tensor) -> Tensor:
        rows = [torch.cat([clips[:, 2 * row], clips[:, 2 * row + 1]], dim=-1) for row in range(2)]
        logits: Tensor = self.head(self.backbone(torch.cat(rows, dim=-2)).pooler_output)
        return logits


TOWERS: dict[str, type[nn.Module]] = {
    "volume": Volume,
    "folded": Folded,
    "videomae": VideoMAE,
    "timesformer": TimeSformer,
    "xclip": XClip,
    "thumbnail": Thumbnail,
}


def tower(name: str, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with random weights that spread the logits."""
    torch.manual_seed(seed)
    model = TOWERS[name]().double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 0.2)
    return model


def clips_of_noise(count: int = 2, seed: int = 1) -> Tensor:
    """(count, FRAMES, 3, SIZE, SIZE) float64."""
    return torch.randn(count, FRAMES, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
