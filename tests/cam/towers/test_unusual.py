"""Hiera and gMLP: a map of tokens in row order, equal to Grad-CAM by hand in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HieraConfig, HieraForImageClassification, HieraModel

from tests.helpers.detectors import images
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError


def spread(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def hiera(sides: int = 96, depths: tuple[int, ...] = (1, 1, 1, 3), **more: object) -> HieraForImageClassification:
    config = HieraConfig(
        embed_dim=8, image_size=[sides, sides], depths=list(depths), num_heads=[1, 1, 2, 2], num_labels=2, **more
    )
    return spread(HieraForImageClassification(config))


def by_hand(model: nn.Module, block: str, norm: str, x: Tensor) -> Tensor:
    """Σ_c mean(G)_c A_c over the tokens that the block's norm gives, (B, T), in float64."""
    kept: dict[str, Tensor] = {}
    model = model.double()
    handle = model.get_submodule(f"{block}.{norm}").register_forward_hook(lambda m, i, output: kept.update(A=output))
    output = model(x.double())
    handle.remove()
    logits = output if isinstance(output, Tensor) else output.logits
    G = torch.autograd.grad(logits[:, 1].sum(), kept["A"])[0]
    model.float()
    return (kept["A"].detach() * G.mean(dim=1, keepdim=True)).sum(dim=2)


@pytest.mark.parametrize("block", [None, "encoder.stages.3.layers.1", "hiera.encoder.stages.3.layers.2"])
@pytest.mark.parametrize("sides", [96, 160, 224])
def test_hiera_behind_its_last_pooling(block: str | None, sides: int) -> None:
    model, x = hiera(sides), images(2, pixels=sides)
    found = explain(model, x, block, "gradcam", target="fake")
    ((name, maps),) = found.layers.items()
    full = "hiera." + name.removeprefix("hiera.")
    wanted = by_hand(model, full, "layernorm_before", x).unflatten(1, (sides // 32, sides // 32))
    torch.testing.assert_close(maps.signed.double(), wanted, rtol=1e-4, atol=1e-6)


def test_hieras_tokens_are_in_row_order_there_as_its_own_code_says() -> None:
    model, x = hiera(160), images(2, pixels=160)
    inner: HieraModel = model.hiera
    with torch.no_grad():
        told = inner(x, output_hidden_states=True).reshaped_hidden_states[-1]
    kept: dict[str, Tensor] = {}
    inner.encoder.stages[3].layers[2].register_forward_hook(lambda m, i, output: kept.update(A=output[0]))
    with torch.no_grad():
        inner(x)
    assert torch.equal(kept["A"].unflatten(1, told.shape[1:3]), told)


@pytest.mark.parametrize(
    "layer", ["encoder.stages.2.layers.0", "encoder.stages.0.layers.0", "encoder.stages.1.layers.0"]
)
def test_hieras_earlier_tokens_are_refused(layer: str) -> None:
    with pytest.raises(InputError, match="tokens, but 3x3 patches are expected"):
        explain(hiera(), images(1, pixels=96), layer)


@pytest.mark.parametrize("more", [{"num_query_pool": 2}, {"depths": (1, 1, 1, 1)}])
def test_a_hiera_without_a_block_in_row_order_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(InputError):
        explain(hiera(96, **more), images(1, pixels=96))  # type: ignore[arg-type]  # one of two keywords


# --------------------------------------------------------------------------------------------------------------- gMLP


class Gate(nn.Module):
    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(width // 2), nn.Linear(places, places)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).transpose(1, 2)).transpose(1, 2)


class Channels(nn.Module):
    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.fc1, self.gate, self.fc2 = (
            nn.Linear(width, 4 * width),
            Gate(4 * width, places),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(F.gelu(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm, self.mlp_channels = nn.LayerNorm(width), Channels(width, places)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp_channels(self.norm(x))


class Stem(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class GMlp(nn.Module):
    def __init__(self, width: int = 16, grid: int = 4, patch: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.stem = Stem(width, patch)
        self.blocks = nn.Sequential(*(Block(width, grid**2) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem.proj(x).flatten(2).transpose(1, 2))).mean(dim=1))


GMLPS: dict[str, Callable[[], nn.Module]] = {
    "4 x 4": GMlp,
    "2 x 2, wide patches": lambda: GMlp(grid=2, patch=16),
    "8 x 8, one block": lambda: GMlp(grid=8, patch=4, depth=1),
}


@pytest.mark.parametrize("layer", [None, -1, "blocks.0"])
@pytest.mark.parametrize("name", GMLPS)
def test_gmlp(name: str, layer: str | int | None) -> None:
    model, x = spread(GMLPS[name]()), images(3, pixels=32)
    maps = next(iter(explain(model, x, layer, "gradcam", target="fake").layers.values()))
    block = "blocks.0" if layer == "blocks.0" else f"blocks.{len(model.get_submodule('blocks')) - 1}"  # type: ignore[arg-type]  # a Sequential
    sides = maps.signed.shape[1:]
    wanted = by_hand(model, block, "norm", x).unflatten(1, sides)
    assert sides == (32 // model.stem.proj.stride[0],) * 2  # type: ignore[union-attr,index]  # the stem's convolution
    torch.testing.assert_close(maps.signed.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["legrad", "rollout", "attngrad"])
def test_gmlp_has_no_attention(method: str) -> None:
    with pytest.raises(InputError, match="attention"):
        explain(spread(GMlp()), images(1, pixels=32), method=method)


# ------------------------------------------------------------------------------------------- blocks in several places


class Group(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(
            *(nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, norm_first=True) for _ in range(2))
        )


class Groups(nn.Module):
    """Groups of two widths, as CrossViT's, on tokens that no convolution has cut."""

    def __init__(self, names: str) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: Group(8 * (1 + i % 2)) for i, name in enumerate(names)})
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.avg_pool2d(x, 8).flatten(2).transpose(1, 2).repeat(1, 1, 6)[..., :16]
        for i, part in enumerate(self.parts.values()):
            tokens = torch.cat([part(tokens[..., : 8 * (1 + i % 2)]), tokens[..., 8 * (1 + i % 2) :]], dim=-1)
        return self.head(tokens.mean(dim=1)[..., :8])


@pytest.mark.parametrize("layer", [None, "parts.a", -1])
@pytest.mark.parametrize("count", [2, 3, 12])
def test_groups_of_blocks_that_cut_no_image_are_refused_for_that(count: int, layer: str | None) -> None:
    model = Groups("abcdefghijkl"[:count])
    with pytest.raises(
        InputError, match=f"holds {count} groups of blocks .* none of which cuts the image into patches"
    ):
        explain(model, images(1, pixels=32), layer)
