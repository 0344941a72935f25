"""One tower of each family, with random weights in float64, against what plain autograd gives on its modules.

Grad-CAM and HiResCAM are computed from hooks on the norm that a block reads through. For LeGrad and rollout PyTorch's
attention is exchanged for one written here that keeps its probabilities, whose gradient autograd then gives: whatever
a tower does to queries and keys before (norms, rotary positions, a fused projection) is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.helpers.detectors import images
from tests.helpers.real_towers import OpenAITower, library
from utils.gradcam import explain
from utils.gradcam_kit.engine.layers import LayerError

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}
VIT = {**SMALL, "patch_size": 16, "intermediate_size": 64}


def hugging_face(name: str, **config: Any) -> nn.Module:
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name}")
    tower = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**{**VIT, **config}))
    inner: nn.Module = getattr(tower, "vision_model", tower)
    return inner


def timm(name: str, **options: Any) -> nn.Module:
    tower: nn.Module = library("timm").create_model(name, num_classes=0, **options)
    return tower


def open_clip(batch_first: bool) -> nn.Module:
    module = library("open_clip").transformer
    tower: Any = module.VisionTransformer(
        image_size=64, patch_size=16, width=32, layers=3, heads=4, mlp_ratio=2, output_dim=32
    )
    tower.transformer = module.Transformer(32, 3, 4, mlp_ratio=2, batch_first=batch_first)
    made: nn.Module = tower
    return made


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` on patches and a CLS token, whose fused kernels pass hooks by in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 32, 16, 16), nn.Parameter(torch.randn(32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        tokens: Tensor = self.encoder(torch.cat([self.cls.expand(len(patches), 1, -1), patches], dim=1))
        return tokens[:, 0]


def lora() -> nn.Module:
    """CLIP whose queries and values are wrapped by peft."""
    peft = library("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped: Any = peft.get_peft_model(hugging_face("CLIPVision"), config)
    inner: nn.Module = wrapped.base_model.model
    return inner


class Family(NamedTuple):
    make: Callable[[], nn.Module]
    norm: str  # of the block that is explained, which is the last but one
    prefix: int = 1
    suffix: int = 0
    grid: tuple[int, int] = (4, 4)
    pixels: int = 64
    tokens_first: bool = False
    has_class_token: bool = True
    exact: bool = True  # False: PyTorch itself multiplies otherwise where a weight needs no gradient


REGISTERS = {"num_register_tokens": 4}
FAMILIES = {
    "HF CLIP": Family(lambda: hugging_face("CLIPVision"), "1.layer_norm1"),
    "HF CLIP with LoRA": Family(lora, "1.layer_norm1"),
    "HF SigLIP": Family(lambda: hugging_face("SiglipVision"), "1.layer_norm1", 0, has_class_token=False),
    "HF ViT": Family(lambda: hugging_face("ViT"), "1.layernorm_before"),
    "HF DeiT": Family(lambda: hugging_face("DeiT"), "1.layernorm_before", 2),
    "HF YOLOS": Family(
        lambda: hugging_face("Yolos", image_size=[64, 64], num_detection_tokens=5), "1.layernorm_before", 1, 5
    ),
    "HF DINOv2": Family(lambda: hugging_face("Dinov2", mlp_ratio=2), "1.norm1"),
    "HF DINOv2 with registers": Family(
        lambda: hugging_face("Dinov2WithRegisters", mlp_ratio=2, **REGISTERS), "1.norm1", 5
    ),
    "HF DINOv3": Family(lambda: hugging_face("DINOv3ViT", **REGISTERS), "1.norm1", 5),
    "OpenAI clip": Family(OpenAITower, "1.ln_1", tokens_first=True),
    "open_clip": Family(lambda: open_clip(True), "1.ln_1", exact=False),
    "open_clip, (T, B, C)": Family(lambda: open_clip(False), "1.ln_1", tokens_first=True),
    "timm ViT": Family(
        lambda: timm("vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=4, depth=3), "1.norm1"
    ),
    "timm ViT, q and k normalised": Family(
        lambda: timm("vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=4, depth=3, qk_norm=True,
                     reg_tokens=2, global_pool="avg"), "1.norm1", 3,
    ),
    "timm EVA-02": Family(
        lambda: timm("eva02_tiny_patch14_224", img_size=56, embed_dim=32, num_heads=4, depth=3), "1.norm1",
        pixels=56,
    ),
    "timm DINOv3": Family(
        lambda: timm("vit_small_patch16_dinov3", img_size=64, embed_dim=32, num_heads=2, depth=3), "1.norm1", 5
    ),
    "PyTorch's encoder": Family(TorchEncoder, "1.norm1", exact=False),
    "torchvision ViT": Family(
        lambda: library("torchvision").models.VisionTransformer(64, 16, 3, 4, 32, 64, num_classes=32),
        "encoder.layers.encoder_layer_1.ln_1", exact=False,
    ),
}  # fmt: skip


class Detector(nn.Module):
    """A tower and a linear head that reads what it returns, and a little of all its tokens where it returns those."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.LazyLinear(2)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.tower(pixels)
        if not isinstance(found, Tensor):
            found = found.last_hidden_state
        if found.ndim == 3:
            found = found[:, 0] + 0.5 * found.mean(dim=1)
        logits: Tensor = self.head(found)
        return logits


def detector_of(make: Callable[[], nn.Module], pixels: int = 64) -> Detector:
    torch.manual_seed(0)
    model = Detector(make())
    with torch.no_grad():
        model(images(1, pixels=pixels))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(family: Family) -> Detector:
    return detector_of(family.make, family.pixels)


def norm_of(model: nn.Module, family: Family) -> tuple[str, nn.Module]:
    """The explained block and its norm; lists of blocks have many names."""
    name = next(name for name, _ in model.named_modules() if name.endswith(f".{family.norm}"))
    return name.rpartition(".")[0], model.get_submodule(name)


def activations(model: nn.Module, norm: nn.Module, family: Family, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of what `norm` returns and their gradient of the fake logit, (B, rows · columns, C)."""
    kept: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (G,) = torch.autograd.grad(model(pixels)[:, 1].sum(), kept)
    handle.remove()
    A = kept[0].detach()
    if family.tokens_first:
        A, G = A.permute(1, 0, 2), G.permute(1, 0, 2)
    patches = slice(family.prefix, family.prefix + family.grid[0] * family.grid[1])
    return A[:, patches], G[:, patches]


def test_maps_equal_plain_autograd_and_a_batch_its_images(model: Detector, family: Family) -> None:
    pixels = images(3, pixels=family.pixels).double()
    block, norm = norm_of(model, family)
    A, G = activations(model, norm, family, pixels)
    expected = {
        "gradcam": (G.mean(dim=1, keepdim=True) * A).sum(dim=2).unflatten(1, family.grid),
        "hirescam": (G * A).sum(dim=2).unflatten(1, family.grid),
    }
    for method, wanted in expected.items():
        found = explain(model, pixels, layers=[block], method=method, target="fake")
        torch.testing.assert_close(found.logits, model(pixels).detach(), rtol=0, atol=0 if family.exact else 1e-12)
        torch.testing.assert_close(found.layers[block].signed, wanted, rtol=0, atol=1e-9)
        assert wanted.abs().max() > 1e-4
        alone = explain(model, pixels[1:2], layers=[block], method=method, target="fake").layers[block].signed
        torch.testing.assert_close(alone, wanted[1:2], rtol=0, atol=1e-9)
    residual = explain(model, pixels, layers=[block], site="residual", target="fake").layers[block].signed
    assert residual.shape == wanted.shape and (residual - expected["gradcam"]).abs().max() > 1e-6


def test_as_many_images_as_tokens(model: Detector, family: Family) -> None:
    """Then no size tells (B, T, C) and (T, B, C) apart."""
    count = family.prefix + family.grid[0] * family.grid[1] + family.suffix
    pixels = images(count, pixels=family.pixels).double()
    block, norm = norm_of(model, family)
    A, G = activations(model, norm, family, pixels)
    wanted = (G.mean(dim=1, keepdim=True) * A).sum(dim=2).unflatten(1, family.grid)
    found = explain(model, pixels, layers=[block], target="fake").layers[block].signed
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """PyTorch's attention written out; every call's probabilities (B, heads, T, T) are kept."""
    kept: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        P = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        kept.append(P)
        return P @ v

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        yield kept


def test_attention_maps_equal_those_of_the_probabilities_themselves(
    model: Detector, family: Family, attended: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(2, pixels=family.pixels).double()
    block, _ = norm_of(model, family)
    score = model(pixels)[:, 1].sum()
    probabilities = list(attended[:3])
    assert len(probabilities) == 3
    (gradient,) = torch.autograd.grad(score, [probabilities[1]])
    monkeypatch.undo()  # PyTorch's own kernels again
    patches = slice(family.prefix, family.prefix + family.grid[0] * family.grid[1])
    expected = gradient.clamp(min=0).mean(dim=(1, 2))[:, patches].unflatten(1, family.grid)
    found = explain(model, pixels, layers=[block], method="legrad", target="fake").layers[block]
    torch.testing.assert_close(found.raw, expected, rtol=1e-6, atol=1e-12)
    if not family.has_class_token:
        with pytest.raises(LayerError, match="reads the class token"):
            explain(model, pixels, layers=[block], method="rollout", target="fake")
        return
    identity = torch.eye(probabilities[0].shape[-1], dtype=torch.float64)
    first, second = ((P.detach().mean(dim=1) + identity) / 2 for P in probabilities[:2])
    wanted = (second @ first)[:, 0, patches].unflatten(1, family.grid)
    found = explain(model, pixels, layers=[block], method="rollout", target="fake").layers[block]
    torch.testing.assert_close(found.raw, wanted, rtol=1e-9, atol=1e-12)


def test_balanced_maps_hold_attention_and_norms_constant(
    model: Detector, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against attention with constant probabilities and LayerNorm with a constant deviation, both written here."""
    pixels = images(2, pixels=family.pixels).double()
    block, norm = norm_of(model, family)
    logits = model(pixels)

    def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1).detach() @ v

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        deviation = (x.var(dim=-1, unbiased=False, keepdim=True) + eps).sqrt().detach()
        return (x - x.mean(dim=-1, keepdim=True)) / deviation * weight + bias

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(F, "layer_norm", layer_norm)
        A, G = activations(model, norm, family, pixels)
    for method, wanted in (("gradcam", (G.mean(dim=1, keepdim=True) * A).sum(dim=2)), ("hirescam", (G * A).sum(dim=2))):
        found = explain(model, pixels, layers=[block], method=method, backward="balanced", target="fake")
        torch.testing.assert_close(found.logits, logits.detach(), rtol=0, atol=0 if family.exact else 1e-12)
        torch.testing.assert_close(found.layers[block].signed.flatten(1), wanted, rtol=0, atol=1e-9)
    plain = explain(model, pixels, layers=[block], method="hirescam", target="fake").layers[block].signed
    assert (plain - found.layers[block].signed).abs().max() > 1e-6
