"""Tokens beside the patches, wherever they stand: prompts, a class token behind, registers, other orders."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.detectors import ARCHITECTURE, images, spread
from utils.gradcam import InputError, explain

PATCHES, WIDTH = 16, 32
Arrange = Callable[[Tensor, Tensor], Tensor]  # patches (B, 16, C), extra (B, 6, C) → tokens


class Clip(nn.Module):
    """A CLIP tower whose tokens are arranged otherwise; the head reads their mean."""

    def __init__(self, arrange: Arrange) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        model = CLIPVisionModel(CLIPVisionConfig(**ARCHITECTURE))
        self.tower, self.head = getattr(model, "vision_model", model), nn.Linear(WIDTH, 2)
        self.extra, self.arrange = nn.Parameter(torch.randn(1, 6, WIDTH)), arrange

    @property
    def blocks(self) -> nn.ModuleList:
        found: nn.ModuleList = self.tower.encoder.layers
        return found

    def norm_of(self, block: int) -> nn.Module:
        return self.blocks[block].get_submodule("layer_norm1")

    def tokens(self, x: Tensor) -> Tensor:
        return self.tower.pre_layrnorm(self.tower.embeddings(x))[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        tokens = self.arrange(tokens, self.extra.expand(len(x), -1, -1))
        for block in self.blocks:
            masks = [name for name in inspect.signature(block.forward).parameters if name.endswith("attention_mask")]
            out = block(tokens, **dict.fromkeys(masks))  # transformers 4 has two of them
            tokens = out[0] if isinstance(out, tuple) else out
        return self.head(tokens.mean(dim=1))


class Plain(Clip):
    """PyTorch's own blocks, of no known family."""

    def __init__(self, arrange: Arrange) -> None:
        nn.Module.__init__(self)
        self.cut = nn.Conv2d(3, WIDTH, 16, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.extra, self.head, self.arrange = nn.Parameter(torch.randn(1, 6, WIDTH)), nn.Linear(WIDTH, 2), arrange

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    def norm_of(self, block: int) -> nn.Module:
        return self.layers[block].get_submodule("norm1")

    def tokens(self, x: Tensor) -> Tensor:
        return self.cut(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.arrange(self.tokens(x), self.extra.expand(len(x), -1, -1))
        for block in self.layers:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


ARRANGED: dict[str, tuple[Arrange, int]] = {  # and where the patches begin
    "one in front": (lambda p, e: torch.cat([e[:, :1], p], 1), 1),
    "one behind": (lambda p, e: torch.cat([p, e[:, :1]], 1), 0),
    "six in front": (lambda p, e: torch.cat([e, p], 1), 6),
    "around": (lambda p, e: torch.cat([e[:, :2], p, e[:, 2:]], 1), 2),
    "registers behind": (lambda p, e: torch.cat([e[:, :1], p, e[:, 1:5]], 1), 1),
    "none": (lambda p, e: p, 0),
}


@pytest.mark.parametrize("kind", [Clip, Plain])
@pytest.mark.parametrize("arranged", ARRANGED)
def test_the_map_is_of_the_patches(arranged: str, kind: type[Clip]) -> None:
    arrange, first = ARRANGED[arranged]
    model, x = spread(kind(arrange)), images(2)
    found = explain(model, x, 2, target="fake").maps["2"].signed
    torch.testing.assert_close(found, by_hand(model, x, first), rtol=1e-4, atol=1e-5)


def by_hand(model: Clip, x: Tensor, first: int) -> Tensor:
    kept: dict[str, Tensor] = {}
    handle = model.norm_of(2).register_forward_hook(lambda m, i, output: kept.update(A=output))
    gradient = torch.autograd.grad(model(x)[:, 1].sum(), kept["A"])[0]
    handle.remove()
    A, G = (part[:, first : first + PATCHES] for part in (kept["A"].detach(), gradient))
    return (A * G.mean(dim=1, keepdim=True)).sum(dim=2).unflatten(1, (4, 4))


ELSEWHERE: dict[str, Arrange] = {
    "backwards": lambda p, e: torch.cat([e[:, :1], p.flip(1)], 1),
    "in columns": lambda p, e: torch.cat([e[:, :2], p.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)], 1),
    "a token after each row": lambda p, e: torch.cat(
        [p.unflatten(1, (4, 4)), e[:, :1, None].expand(-1, 4, -1, -1)], 2
    ).flatten(1, 2),
    "two patches a token": lambda p, e: torch.cat([e, e[:, :4], p.unflatten(1, (8, 2)).mean(2)], 1),
}


@pytest.mark.parametrize("kind", [Clip, Plain])
@pytest.mark.parametrize("arranged", ELSEWHERE)
def test_tokens_that_lie_otherwise_are_refused(arranged: str, kind: type[Clip]) -> None:
    with pytest.raises(InputError, match="say by token_grid of a detector how they lie"):
        explain(spread(kind(ELSEWHERE[arranged])), images(2), 2, target="fake")


class Mirrored(Clip):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1))


def before_all(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].flip(-1) * 0.5,)


@pytest.mark.parametrize("arranged", ["one in front", "one behind", "six in front"])
@pytest.mark.parametrize("how", ["its own code", "a hook"])
def test_a_mirrored_image_is_said(how: str, arranged: str) -> None:
    arrange, first = ARRANGED[arranged]
    model = spread((Mirrored if how == "its own code" else Clip)(arrange))
    if how != "its own code":
        model.register_forward_pre_hook(before_all)
    with pytest.warns(UserWarning, match="reads each image mirrored"):
        found = explain(model, images(2), 2, target="fake").maps["2"].signed
    torch.testing.assert_close(found, by_hand(model, images(2), first), rtol=1e-4, atol=1e-5)


class Cropping(nn.Module):
    """A network whose own code cuts off the border, or resizes what is left."""

    def __init__(self, network: nn.Module, border: int, side: int | None = None) -> None:
        super().__init__()
        self.network, self.border, self.side = network, border, side

    def forward(self, x: Tensor) -> Tensor:
        height, width, cut = x.shape[2], x.shape[3], self.border
        x = x[..., cut : height - cut, cut : width - cut]
        return self.network(x if self.side is None else F.interpolate(x, (self.side, self.side), mode="bilinear"))


@pytest.mark.parametrize("size", [96, 128, 88])
def test_a_network_that_resizes_its_images_is_explained(size: int) -> None:
    arrange, first = ARRANGED["one in front"]
    model, x = spread(Clip(arrange)), images(2)
    bigger = F.interpolate(x, (size, size), mode="bilinear")
    found = explain(Cropping(model, 0, 64), bigger, 2, target="fake").maps["2"]
    read = F.interpolate(bigger, (64, 64), mode="bilinear")
    torch.testing.assert_close(found.signed, by_hand(model, read, first), rtol=1e-4, atol=1e-5)
    assert found.canvas.seen == (size, size)  # the map is of the whole image


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 5, 4, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()


@pytest.mark.parametrize("side", [None, 64])
@pytest.mark.parametrize("network", [lambda: spread(Clip(ARRANGED["one in front"][0])), convolutional])
def test_an_unread_border_is_said(network: Callable[[], nn.Module], side: int | None) -> None:
    x = F.interpolate(images(2), (76, 76), mode="bilinear")
    with pytest.warns(UserWarning, match="does not read the outer . pixels of its 76x76 images"):
        explain(Cropping(network(), 6, side), x, target="fake")


@pytest.mark.parametrize("network", [lambda: spread(Clip(ARRANGED["one in front"][0])), convolutional])
def test_a_border_that_is_read_is_not_warned_of(network: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(Cropping(network(), 0, 64), F.interpolate(images(2), (76, 76), mode="bilinear"), target="fake")
