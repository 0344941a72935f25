"""Swin V2: norms stand behind attention and MLP, so a block reads the stream as it is, whatever site is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from utils.gradcam import explain

WIDTH = 16


class WindowAttentionV2(nn.Module):
    """Tokens of a window mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.window_size, self.proj = (4, 4), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.proj(x) + x.mean((1, 2), keepdim=True)
        return mixed


class SwinBlockCr(nn.Module):
    """As timm's, known by its attention; (B, h, w, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm1, self.norm2 = WindowAttentionV2(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        out: Tensor = x + self.norm2(self.mlp(x))
        return out


class SwinTransformerBlockV2(SwinBlockCr):
    """As torchvision's, known by its own name."""


class Net(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.patch_embed, self.head = nn.Module(), nn.Linear(WIDTH, 2)
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, 8, 8)
        self.blocks = nn.Sequential(block(), block(), block())

    def forward(self, images: Tensor) -> Tensor:
        patches: Any = self.patch_embed.proj
        logits: Tensor = self.head(self.blocks(patches(images).permute(0, 2, 3, 1)).mean((1, 2)))
        return logits


class HuggingFace(nn.Module):
    """transformers' Swin V2, of tokens (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"image_size": 64, "patch_size": 8, "embed_dim": WIDTH, "depths": [3], "num_heads": [2]}
        self.backbone = transformers.Swinv2Model(transformers.Swinv2Config(**sizes, window_size=4))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images).last_hidden_state.mean(1))
        return logits


NETS: dict[str, tuple[Any, str]] = {
    "as timm's": (lambda: Net(SwinBlockCr), "blocks.1"),
    "as torchvision's": (lambda: Net(SwinTransformerBlockV2), "blocks.1"),
    "transformers": (HuggingFace, "backbone.encoder.layers.0.blocks.1"),
}


@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("name", NETS)
def test_what_a_block_reads_is_explained(name: str, site: str) -> None:
    torch.manual_seed(0)
    build, block = NETS[name]
    model, images = build().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    found = explain(model, images, layers=1, site=site, method="hirescam", target="fake").maps.only.signed
    kept: list[Tensor] = []
    handle = model.get_submodule(block).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    logits = model(images)
    handle.remove()
    (G,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    expected = (G * kept[0]).sum(-1).detach().reshape(2, 8, 8)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
