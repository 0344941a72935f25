"""Networks whose parts have the names of a transformer's, or its attention, and that pass on maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.detectors import ARCHITECTURE, images, spread
from utils.gradcam import InputError, Recipe, explain
from utils.gradcam_kit.engine.layers import LayerError


class Normed(nn.Module):
    """A block of maps that begins with a `norm1` of some kind."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.conv = norm, nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm1(x).relu())


class LastNorm(nn.LayerNorm):
    """A LayerNorm of maps, channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenBlock(nn.Module):
    """Attention as written by hand, of maps as tokens; its parts see heads and the attention matrix."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.attn_drop = nn.LayerNorm(width // heads), nn.Dropout(0.0)

    def forward(self, maps: Tensor) -> Tensor:
        batch, width, rows, columns = maps.shape
        x = maps.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attention = self.attn_drop((self.q_norm(q) @ k.transpose(-2, -1)).softmax(dim=-1))
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(batch, -1, width))
        return x.transpose(1, 2).reshape(batch, width, rows, columns)


class ConvAttention(nn.Module):
    """Queries, keys and values by a convolution, heads of (B, heads, d, T)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1), heads
        self.kernel = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, columns = x.shape
        q, k, v = self.qkv(x).reshape(batch, self.heads, -1, rows * columns).chunk(3, dim=2)
        mixed = v @ self.kernel(k).transpose(-2, -1) @ self.kernel(q) / (rows * columns)
        return x + self.out(mixed.reshape(batch, width, rows, columns))


def stages(*blocks: nn.Module) -> nn.Sequential:
    """A stem, blocks of 16 channels, a step to 32, and a head."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    return nn.Sequential(nn.Conv2d(3, 16, 7, 4, 3), *blocks, nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), *head)


NETWORKS: dict[str, Callable[[], tuple[nn.Sequential, list[int]]]] = {  # and which of its modules return maps
    "batch norm": lambda: (stages(Normed(nn.BatchNorm2d(16), 16), Normed(nn.BatchNorm2d(16), 16)), [1, 2, 4]),
    "group norm": lambda: (stages(Normed(nn.GroupNorm(1, 16), 16)), [1, 3]),
    "instance norm": lambda: (stages(Normed(nn.InstanceNorm2d(16, affine=True), 16)), [1, 3]),
    "layer norm of maps": lambda: (stages(Normed(LastNorm(16), 16)), [1, 3]),
    "attention in a stage": lambda: (stages(Normed(nn.BatchNorm2d(16), 16), TokenBlock(16)), [1, 2, 4]),
    "attention by convolutions": lambda: (stages(ConvAttention(16), TokenBlock(16)), [1, 2, 4]),
}


def by_hand(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """HiResCAM of maps (B, C, h, w)."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept["A"] = output
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    gradient = torch.autograd.grad(model(x)[:, 1].sum(), kept["A"])[0]
    handle.remove()
    return (gradient * kept["A"]).sum(dim=1).detach()


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_maps_are_explained(network: str) -> None:
    model, layers = NETWORKS[network]()
    model, x = spread(model), images(2, pixels=64)
    default = next(iter(explain(model, x, method="hirescam", target="fake").layers))
    assert default == str(layers[-1])
    for layer in map(str, layers):
        found = explain(model, x, layer, method="hirescam", target="fake").layers[layer]
        torch.testing.assert_close(found.signed, by_hand(model, layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "layer"), [("attention in a stage", "2.attn_drop"), ("attention in a stage", "2.q_norm"),
                                                ("attention by convolutions", "1.kernel"),
                                                ("attention by convolutions", "2.attn_drop")])  # fmt: skip
def test_what_heads_see_is_no_map(network: str, layer: str) -> None:
    model, _ = NETWORKS[network]()
    with pytest.raises(LayerError, match="split into attention heads|runs more than once"):
        explain(spread(model), images(2, pixels=64), layer)


class Talking(nn.Module):
    """Attention weights that a convolution mixes between heads, as DeepViT's; heads split by `view` and `unbind`."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.qkv, self.mix = nn.Conv2d(3, 32, 18, 16, 1), nn.Linear(32, 96), nn.Conv2d(8, 8, 1)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).mT
        q, k, v = self.qkv(tokens).view(len(x), -1, 3, 8, 4).unbind(2)
        weights = self.mix(F.softmax(torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)), dim=-1))
        mixed = torch.matmul(weights, v.transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.head((tokens + self.out(mixed)).mean(dim=1))


def test_attention_that_is_mixed_between_heads_is_no_map() -> None:
    model, x = spread(Talking()), images(2)
    assert list(explain(model, x).layers) == ["cut"]
    with pytest.raises(LayerError, match="split into attention heads"):
        explain(model, x, "mix")


class OneWindow(nn.Module):
    """A block of BEiT: a window that is the image, with the class token before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.mlp = nn.LayerNorm(32), nn.Module(), nn.Linear(32, 32)
        self.attn.window_size, self.attn.num_heads = (4, 4), 4  # type: ignore[assignment]  # as timm's attention
        self.attn.qkv, self.attn.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.get_submodule("qkv")(self.norm1(x)).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn.get_submodule("proj")(mixed)
        return x + self.mlp(x)


class Beit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = nn.Module(), nn.Parameter(torch.zeros(1, 1, 32))
        self.patch_embed.proj, self.head = nn.Conv2d(3, 32, 16, 16), nn.Linear(32, 2)
        self.blocks = nn.ModuleList(OneWindow() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed.get_submodule("proj")(x).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 1:].mean(dim=1))


def test_a_window_that_is_the_image_makes_no_swin() -> None:
    model, x = spread(Beit()), images(2)
    kept: dict[str, Tensor] = {}
    (layer, found), *_ = explain(model, x, method="hirescam", target="fake").layers.items()
    assert layer == "blocks.2"
    handle = model.blocks[2].norm1.register_forward_hook(lambda module, inputs, output: kept.update(A=output))
    gradient = torch.autograd.grad(model(x)[:, 1].sum(), kept["A"])[0]
    handle.remove()
    wanted = (kept["A"].detach() * gradient)[:, 1:].sum(dim=2).unflatten(1, (4, 4))
    torch.testing.assert_close(found.signed, wanted, rtol=1e-4, atol=1e-5)


class TwoStreams(nn.Module):
    def __init__(self, kind: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.rgb, self.frequency, self.head = kind(), kind(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.rgb(x), self.frequency(x.flip(1))], dim=1))


class PlainViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, 32, 16, 16), nn.Linear(32, 2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(dim=1))


@pytest.mark.parametrize("layers", [["rgb.layers.1"], ["frequency.layers.0", "frequency.layers.1"]])
def test_one_of_two_streams_is_named_in_full(layers: list[str]) -> None:
    model, x = spread(TwoStreams(PlainViT)), images(2)
    found = explain(model, x, layers, target="fake")
    modules = [model.get_submodule(layer) for layer in layers]
    for layer, module in zip(layers, modules, strict=True):
        kept: dict[str, Tensor] = {}
        handle = module.get_submodule("norm1").register_forward_hook(lambda m, i, o, kept=kept: kept.update(A=o))
        with torch.enable_grad():
            score = model(x)[:, 1].sum()
            gradient = torch.autograd.grad(score, kept["A"])[0]
        handle.remove()
        wanted = (kept["A"].detach() * gradient.mean(dim=1, keepdim=True)).sum(dim=2).unflatten(1, (4, 4))
        torch.testing.assert_close(found.layers[layer].signed, wanted, rtol=1e-3, atol=1e-4)
    again = explain(model, x, modules[:1], target="fake")  # as modules
    assert torch.equal(next(iter(again.layers.values())).signed, found.layers[layers[0]].signed)


def clip_tower() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**ARCHITECTURE))
    return getattr(model, "vision_model", model)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.frequency, self.head = clip_tower(), clip_tower(), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.rgb(x).pooler_output, self.frequency(x.flip(1)).pooler_output], dim=1))


def test_which_of_two_towers_is_asked_for() -> None:
    model, x = spread(TwoTowers()), images(2)
    for layers in (None, ["rgb.encoder.layers.1", "frequency.encoder.layers.1"], ["encoder.layers.1"]):
        with pytest.raises(InputError, match="holds 2 towers .*name a layer by its full path, such as rgb"):
            explain(model, x, layers)
    one = explain(model, x, "rgb.encoder.layers.1", target="fake").maps["rgb.encoder.layers.1"].signed
    other = explain(model, x, "frequency.encoder.layers.1", target="fake").maps["frequency.encoder.layers.1"].signed
    assert not torch.allclose(one, other)
    by_recipe = explain(model, x, recipes=[Recipe("gradcam", layers="rgb.encoder.layers.1")], target="fake")
    assert torch.equal(next(iter(by_recipe.layers.values())).signed, one)
