"""Transformers of other kinds: Hugging Face's ViT and DINOv2 with registers, and PyTorch's own encoder.

Expected maps are Grad-CAM by plain autograd, from what the block's first norm returns; whatever precedes the patches
(CLS, registers) is no part of the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from tests.helpers.detectors import images
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.explaining.mixin import GradCAMMixin

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16,
                         "image_size": 64}  # fmt: skip


def vit() -> nn.Module:
    return ViTModel(ViTConfig(intermediate_size=64, **SMALL), add_pooling_layer=False)


def dinov2_with_registers() -> nn.Module:
    module = pytest.importorskip("transformers", "4.48", reason="Dinov2WithRegistersModel is newer")
    config = module.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **SMALL)
    return module.Dinov2WithRegistersModel(config)


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` on patches and a CLS token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 16, 16)
        self.cls = nn.Parameter(torch.randn(32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        tokens: Tensor = self.encoder(torch.cat([self.cls.expand(len(patches), 1, -1), patches], dim=1))
        return tokens


class Kind(NamedTuple):
    make: Any
    norm: str  # the first norm of the last block
    block: str


KINDS = {
    "Hugging Face ViT": Kind(vit, "layernorm_before", ""),
    "Hugging Face DINOv2 with registers": Kind(dinov2_with_registers, "norm1", ""),
    "PyTorch's encoder": Kind(TorchEncoder, "norm1", "encoder.layers.2"),
}


class Detector(GradCAMMixin):
    """As a user writes one: a tower, a linear head on its first token."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = tower, nn.Linear(32, 2)
        self.init_gradcam({"gradcam_enabled": True})

    def forward(self, data_dict: dict[str, Tensor], inference: bool = False) -> dict[str, Tensor]:
        out = self.backbone(data_dict["image"])
        tokens = out if isinstance(out, Tensor) else out.last_hidden_state
        logits = self.head(tokens[:, 0])
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": tokens[:, 0]}


def make_detector(kind: Kind) -> Detector:
    torch.manual_seed(0)
    model = Detector(kind.make())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def by_hand(model: Detector, norm: nn.Module, pixels: Tensor) -> Tensor:
    """Grad-CAM of the fake logit from the 4 × 4 patches of `norm`'s output, (B, 4, 4)."""
    kept: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (G,) = torch.autograd.grad(model({"image": pixels})["cls"][:, 1].sum(), kept)
    handle.remove()
    A, G = kept[0].detach()[:, -16:], G[:, -16:]
    return (G.mean(dim=1, keepdim=True) * A).sum(dim=2).reshape(-1, 4, 4)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_block_is_explained_without_a_word_about_the_tower(name: str) -> None:
    model, pixels = make_detector(KINDS[name]), images(3).double()
    (layer,) = model.default_layers()
    assert layer == KINDS[name].block or layer.endswith("layer.2") or layer.endswith("layers.2")
    found = model.explain({"image": pixels}, method="gradcam", target="fake").layers[layer]
    norm = model.backbone.get_submodule(f"{layer}.{KINDS[name].norm}")
    torch.testing.assert_close(found.signed, by_hand(model, norm, pixels), rtol=0, atol=1e-12)
    alone = model.explain({"image": pixels[1:2]}, method="gradcam", target="fake").layers[layer]
    torch.testing.assert_close(alone.signed, found.signed[1:2], rtol=0, atol=1e-12)


def test_explain_finds_it_inside_a_model_of_ones_own() -> None:
    detector, pixels = make_detector(KINDS["Hugging Face ViT"]), images(2).double()
    layer = detector.default_layers()[0]
    explanation = explain(
        detector, pixels, forward=lambda x: detector({"image": x})["cls"], layers=[f"backbone.{layer}"], target="fake"
    )
    expected = detector.explain({"image": pixels}, method="gradcam", target="fake")
    torch.testing.assert_close(explanation.layers[f"backbone.{layer}"].signed, expected.layers[layer].signed)


def test_siglip_has_no_class_token() -> None:
    """Its patches are all its tokens; rollout, whose map is the class token's row, is refused."""
    module = pytest.importorskip("transformers", "4.37", reason="SigLIP is newer")
    config = module.SiglipVisionConfig(intermediate_size=64, num_channels=3, **SMALL)
    tower = module.SiglipVisionModel(config)
    model, pixels = make_detector(Kind(lambda: getattr(tower, "vision_model", tower), "", "")), images(2).double()
    (layer,) = model.default_layers()
    found = model.explain({"image": pixels}, layers=["encoder.layers.1"], target="fake").layers["encoder.layers.1"]
    expected = by_hand(model, model.backbone.get_submodule("encoder.layers.1.layer_norm1"), pixels)
    torch.testing.assert_close(found.signed, expected, rtol=0, atol=1e-12)
    assert model.explain({"image": pixels}, method="legrad").layers[layer].raw.shape == (2, 4, 4)
    with pytest.raises(LayerError, match="reads the class token, which this backbone lacks"):
        model.explain({"image": pixels}, method="rollout")


class Described(Detector):
    """A tower that cuts images into patches by no convolution; the detector says how they lie."""

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16


class Unfolded(TorchEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * 16 * 16, 32)  # type: ignore[assignment]  # another kind of module, on purpose

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch(nn.functional.unfold(pixels, 16, stride=16).transpose(1, 2))
        tokens: Tensor = self.encoder(torch.cat([self.cls.expand(len(patches), 1, -1), patches], dim=1))
        return tokens


def test_a_detector_may_say_how_patches_lie() -> None:
    torch.manual_seed(0)
    pixels = images(2)
    with pytest.raises(InputError, match="patch size is unknown; override patch_grid"):
        Detector(Unfolded()).eval().explain({"image": pixels}, target="fake")
    model = Described(Unfolded()).eval()
    found = model.explain({"image": pixels}, method="gradcam", target="fake").layers["encoder.layers.2"]
    expected = by_hand(model, model.backbone.encoder.layers[2].norm1, pixels)
    torch.testing.assert_close(found.signed, expected, rtol=0, atol=1e-6)


class ShortcutStem(nn.Module):
    """Two convolutions around each other, the shorter of size 1, whose maps a transformer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.short = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(3, 16, 1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.act, self.head = nn.MaxPool2d(4), nn.Linear(16, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.act(self.conv(pixels) + self.short(pixels))
        logits: Tensor = self.head(self.encoder(maps.flatten(2).transpose(1, 2)).mean(dim=1))
        return logits


def test_a_shortcut_around_a_convolution_cuts_no_patches() -> None:
    torch.manual_seed(0)
    explanation = explain(ShortcutStem().eval(), images(2, pixels=16))
    assert list(explanation.layers) == ["act"] and explanation.maps.raw.shape == (2, 4, 4)
