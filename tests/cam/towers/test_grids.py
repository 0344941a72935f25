"""Towers whose activations have rows and columns already, in either order, and images that patches do not divide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.cam.towers.test_tower_families import Detector, detector_of, timm
from tests.helpers.detectors import images, tiny_detector
from tests.helpers.real_towers import library
from utils.gradcam import explain
from utils.gradcam_kit.drawing.overlays import UNSEEN, layer_images
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.engine.maps import Canvas, normalise


class Mixer(nn.Module):
    """Norm and linear layer on (B, h, w, C), with a convolution between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + F.gelu(self.mlp(near))


class ChannelsLast(nn.Module):
    """As many channels as rows and columns: sizes tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.stages = nn.Sequential(Mixer(8), Mixer(8), Mixer(8))

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.stages(self.stem(pixels).permute(0, 2, 3, 1)).mean(dim=(1, 2))
        return found


def torchvision_swin() -> nn.Module:
    swin: nn.Module = library("torchvision").models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=16)
    return swin


def hugging_face_swin() -> nn.Module:
    config = transformers.SwinConfig(image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return transformers.SwinModel(config)


def timm_swin() -> nn.Module:
    sizes = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return timm("swin_tiny_patch4_window7_224", img_size=64, **sizes)


def convnext(mixer: str) -> Callable[[], nn.Module]:
    return lambda: timm("convnext_atto", conv_mlp=mixer == "convolutions", dims=(16, 16, 16, 16), depths=(1, 1, 1, 1))


LAST, FIRST, TOKENS = "channels last", "channels first", "tokens"
# tower → layer as named, module whose output is read, how its axes lie
READ: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "own": (ChannelsLast, "stages.1", "stages.1", LAST),
    "own, inside": (ChannelsLast, "stages.1.near", "stages.1.near", FIRST),
    "torchvision Swin, a block": (torchvision_swin, "features.1.1", "features.1.1.norm1", LAST),
    "torchvision Swin, a stage": (torchvision_swin, "features.1", "features.1", LAST),
    "torchvision Swin, turned": (torchvision_swin, "permute", "permute", FIRST),
    "timm Swin, a block": (timm_swin, "layers.1.blocks.0", "layers.1.blocks.0.norm1", LAST),
    "HF Swin, first stage": (
        hugging_face_swin, "encoder.layers.0.blocks.1", "encoder.layers.0.blocks.1.layernorm_before", TOKENS
    ),
    "HF Swin, second stage": (
        hugging_face_swin, "encoder.layers.1.blocks.1", "encoder.layers.1.blocks.1.layernorm_before", TOKENS
    ),
    "ConvNeXt, a stage": (convnext("linear"), "stages.2", "stages.2", FIRST),
    "ConvNeXt, its norm": (convnext("linear"), "stages.2.blocks.0.norm", "stages.2.blocks.0.norm", LAST),
    "ConvNeXt of convolutions, its norm": (
        convnext("convolutions"), "stages.2.blocks.0.norm", "stages.2.blocks.0.norm", FIRST
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_rows_columns_and_channels_are_never_confused(name: str) -> None:
    make, layer, read, order = READ[name]
    model, pixels = detector_of(make), images(3).double()
    kept: list[Tensor] = []
    handle = model.get_submodule(f"tower.{read}").register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    (G,) = torch.autograd.grad(model(pixels)[:, 1].sum(), kept)
    handle.remove()
    A = kept[0].detach()
    if order == TOKENS:
        side = int(A.shape[1] ** 0.5)
        A, G = A.unflatten(1, (side, side)), G.unflatten(1, (side, side))
    if order != FIRST:
        A, G = A.permute(0, 3, 1, 2), G.permute(0, 3, 1, 2)
    wanted = (G.mean(dim=(2, 3), keepdim=True) * A).sum(dim=1)
    found = explain(model, pixels, layers=[f"tower.{layer}"], target="fake").layers[f"tower.{layer}"].signed
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    alone = explain(model, pixels[1:2], layers=[f"tower.{layer}"], target="fake").layers[f"tower.{layer}"].signed
    torch.testing.assert_close(alone, wanted[1:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "layer"),
    [(timm_swin, "layers.0.blocks.0.attn.qkv"), (hugging_face_swin, "encoder.layers.0.blocks.0.attention")],
)
def test_windows_are_no_images(make: Callable[[], nn.Module], layer: str) -> None:
    with pytest.raises(LayerError, match=r"works on parts of an image \(windows\)"):
        explain(detector_of(make), images(2).double(), layers=[f"tower.{layer}"], target="fake")


def test_attention_within_windows_is_refused() -> None:
    with pytest.raises(LayerError, match="has no attention to read"):
        explain(
            detector_of(timm_swin),
            images(1).double(),
            layers=["tower.layers.1.blocks.0"],
            method="legrad",
            target="fake",
        )


def test_a_map_covers_what_the_tower_has_seen() -> None:
    """70 × 90 pixels at patch 16: 4 × 5 patches, 64 × 80 pixels from the top left."""
    model, pixels = tiny_detector(), images(2, pixels=(70, 90))
    forward: Any = model.backbone.embeddings
    with torch.no_grad():
        assert forward.patch_embedding(pixels).shape[2:] == (4, 5)
    values = torch.rand(2, 4, 5)
    maps = normalise(values, Canvas((70, 90), (64, 80)))
    resized = F.interpolate(values[:, None], size=(64, 80), mode="bilinear", align_corners=False)[:, 0]
    lowest, highest = resized.amin(dim=(1, 2), keepdim=True), resized.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(maps[:, :64, :80], (resized - lowest) / (highest - lowest))
    assert not maps[:, 64:].any() and not maps[:, :, 80:].any()
    padded = normalise(values, Canvas((60, 90), (64, 96)))  # a tower that pads: its last patches hang over the edge
    beyond = F.interpolate(values[:, None], size=(64, 96), mode="bilinear", align_corners=False)[:, 0, :60, :90]
    lowest, highest = beyond.amin(dim=(1, 2), keepdim=True), beyond.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(padded, (beyond - lowest) / (highest - lowest))


def test_unseen_pixels_are_grey() -> None:
    model, pixels = tiny_detector(), images(1, pixels=(70, 90))
    maps = model.explain({"image": pixels}, layers=["encoder.layers.1"]).layers
    assert maps["encoder.layers.1"].grid == (4, 5) and maps["encoder.layers.1"].canvas.seen == (64, 80)
    for signed in (False, True):
        ((drawn,),) = layer_images(torch.zeros(1, 3, 70, 90, dtype=torch.uint8), maps, "jet", signed)
        assert (drawn.overlay[64:] == UNSEEN).all() and (drawn.overlay[:, 80:] == UNSEEN).all()
        assert not (drawn.overlay[:64, :80] == UNSEEN).all(axis=2).any()


def test_a_convolution_sees_the_whole_image() -> None:
    model = Detector(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model(images(1))
    found = explain(model.eval(), images(1, pixels=(67, 45)), layers=["tower.1"], target="fake").layers["tower.1"]
    assert found.canvas.seen == (67, 45) == found.normalised.shape[1:]
