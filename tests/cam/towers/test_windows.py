"""Networks that cut maps into windows and put them together again, where sizes cannot tell which axis has the channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from utils.gradcam import explain

SIDE, WINDOW, COUNT = 8, 4, 2  # 8 × 8 cells of 8 channels, in 2 × 2 windows of 4 × 4


class Mixed(nn.Module):
    """What attention in a window is made of, for tokens (..., C): a norm, a linear layer, tokens mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(SIDE), nn.Linear(SIDE, SIDE)

    def forward(self, tokens: Tensor) -> Tensor:
        read: Tensor = self.linear(self.norm(tokens))
        return tokens + read.tanh()


class Block(nn.Module):
    """(B, C, H, W) → the same, by windows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.mixed = kind, Mixed()

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.kind == "views":  # as torchvision's MaxViT
            cut = x.reshape(count, SIDE, COUNT, WINDOW, COUNT, WINDOW).permute(0, 2, 4, 3, 5, 1)
            tokens = self.mixed(cut.reshape(count, COUNT * COUNT, WINDOW * WINDOW, SIDE))
            back = tokens.reshape(count, COUNT, COUNT, WINDOW, WINDOW, SIDE).permute(0, 5, 1, 3, 2, 4)
            return back.reshape(count, SIDE, SIDE, SIDE)
        if self.kind == "grid":  # cells far from each other, brought together by swapping axes
            cut = x.view(count, SIDE, COUNT, WINDOW, COUNT, WINDOW).permute(0, 2, 4, 3, 5, 1)
            tokens = torch.swapaxes(cut.reshape(count, COUNT * COUNT, WINDOW * WINDOW, SIDE), -2, -3)
            tokens = torch.swapaxes(self.mixed(tokens), -2, -3)
            back = tokens.reshape(count, COUNT, COUNT, WINDOW, WINDOW, SIDE).permute(0, 5, 1, 3, 2, 4)
            return back.reshape(count, SIDE, SIDE, SIDE)
        last = x.permute(0, 2, 3, 1)
        if self.kind == "channels last":  # as Swin's windows
            cut = last.view(count, COUNT, WINDOW, COUNT, WINDOW, SIDE).permute(0, 1, 3, 2, 4, 5)
            tokens = self.mixed(cut.reshape(-1, WINDOW, WINDOW, SIDE))
            back = tokens.view(count, COUNT, COUNT, WINDOW, WINDOW, SIDE).permute(0, 1, 3, 2, 4, 5)
            return back.reshape(count, SIDE, SIDE, SIDE).permute(0, 3, 1, 2)
        cut = last.unflatten(2, (COUNT, WINDOW)).unflatten(1, (COUNT, WINDOW)).transpose(2, 3)
        tokens = self.mixed(cut.flatten(3, 4).flatten(1, 2))
        back = tokens.unflatten(1, (COUNT, COUNT)).unflatten(3, (WINDOW, WINDOW)).transpose(2, 3)
        return back.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class Net(nn.Module):
    """A convolution, a block of windows, a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, SIDE, 5, 4, 2), Block(kind), nn.Linear(SIDE, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(images).relu()).mean((2, 3)))
        return logits


@pytest.mark.parametrize("kind", ["views", "grid", "channels last", "unflattened"])
def test_channels_are_followed_through_windows(kind: str) -> None:
    torch.manual_seed(0)
    model, images = Net(kind).double().eval(), torch.randn(3, 3, 4 * SIDE, 4 * SIDE, dtype=torch.float64)
    found = explain(model, images, layers="block", target="fake").maps.only.signed
    kept: list[Tensor] = []
    handle = model.block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images)
    handle.remove()
    (A,) = kept
    (G,) = torch.autograd.grad(logits[:, 1].sum(), A)
    torch.testing.assert_close(found, (G.mean((2, 3), keepdim=True) * A).sum(1).detach())
