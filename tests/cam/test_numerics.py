"""Numbers at their limits: a map is finite and in [0, 1], or flagged as empty, or refused; NaN reaches no image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.cam.whole_block import take_the_whole_block
from tests.helpers.command_server import CommandServer
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import BLOCKS, PIXELS, images, tiny_detector
from utils.gradcam import explain
from utils.gradcam_kit.engine import tokens
from utils.gradcam_kit.engine.checks import Checks
from utils.gradcam_kit.engine.maps import LayerMaps, NonFiniteMapError, layer_maps, normalise
from utils.gradcam_kit.engine.methods import METHODS, cam_method, signed_maps
from utils.gradcam_kit.engine.tokens import Tokens, on_grid, reach
from utils.gradcam_kit.engine.towers import Grid
from utils.gradcam_kit.explaining.explanation import Explanation

LAYERS = tuple(f"encoder.layers.{i}" for i in range(BLOCKS))
HALVES = (torch.float16, torch.bfloat16)


def scaled_head(factor: float, bias: tuple[float, float] = (0.0, 0.0)) -> CLIPDetectorWithGradCAM:
    model = tiny_detector()
    with torch.no_grad():
        model.head.weight.mul_(factor)
        model.head.bias.copy_(torch.tensor(bias))
    return model


def explained(model: CLIPDetectorWithGradCAM, image: Tensor, **how: Any) -> Explanation:
    return model.explain({"image": image}, layers=LAYERS, **how)


def assert_fit_to_draw(maps: LayerMaps) -> None:
    """Finite, in [0, 1], stretched over all of it; or flagged, and then all zero."""
    normalised = maps.normalised
    assert normalised.dtype == torch.float32 and torch.isfinite(normalised).all() and torch.isfinite(maps.raw).all()
    for one, empty in zip(normalised, maps.empty, strict=True):
        assert one.min() == 0 and one.max() == (0 if empty else 1)


def likeness(one: LayerMaps, other: LayerMaps) -> float:
    """Cosine similarity of the signed maps, the least of the batch."""
    flat = [maps.signed.double().flatten(1) for maps in (one, other)]
    flat = [maps / maps.abs().amax(dim=1, keepdim=True) for maps in flat]
    return float(F.cosine_similarity(flat[0], flat[1]).min())


# --------------------------------------------------------------------------------------------------- logits and heads


@pytest.mark.parametrize("bias", [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4)])
@pytest.mark.parametrize("target", ["predicted", "fake", "margin"])
def test_logits_of_ten_thousand_change_no_map(bias: tuple[float, float], target: str) -> None:
    """A bias moves the logits and saturates the probability, which float32 then calls 0 or 1; gradients stay."""
    plain, saturated = scaled_head(1.0), scaled_head(1.0, bias)
    image = images(4)
    got = explained(saturated, image, target=target)
    assert got.logits.abs().amin() > 9_000
    prob = got.prediction["prob"]
    assert torch.isfinite(prob).all() and (bias[0] == bias[1] or ((prob == 0) | (prob == 1)).all())
    expected = explained(plain, image, target=[{"fake": 1, "real": 0}.get(one, one) for one in got.target])
    for name in LAYERS:
        assert_fit_to_draw(got.layers[name])
        assert torch.equal(got.layers[name].normalised, expected.layers[name].normalised)


@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e-10, 1e5, 1e15, 1e30])
def test_the_scale_of_the_head_does_not_show(factor: float) -> None:
    """Grad-CAM is linear in the gradient, so that a head of any scale gives the same normalised map."""
    image = images(4)
    expected = explained(scaled_head(1.0), image, target="fake")
    got = explained(scaled_head(factor), image, target="fake")
    loose = factor < 1e-37  # gradients there are denormal numbers of a few bits
    for name in LAYERS:
        assert_fit_to_draw(got.layers[name])
        difference = (got.layers[name].normalised - expected.layers[name].normalised).abs().max()
        assert difference < (0.3 if loose else 1e-4)
        assert likeness(got.layers[name], expected.layers[name]) > (0.99 if loose else 0.999999)


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e5, 1e15])
def test_grad_cam_pp_with_heads_of_any_scale(factor: float) -> None:
    for name, maps in explained(scaled_head(factor), images(4), method="gradcam++").layers.items():
        assert_fit_to_draw(maps)
        assert maps.raw.any(), name  # G³ underflows at 1e-15 already


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 1000.0])
def test_constant_images(level: float, method: str) -> None:
    image = torch.full((2, 3, PIXELS, PIXELS), level)
    single, double = tiny_detector(), tiny_detector().double()
    got, expected = (explained(m, i, method=method) for m, i in ((single, image), (double, image.double())))
    for name in LAYERS:
        assert_fit_to_draw(got.layers[name])
        assert torch.equal(got.layers[name].empty, expected.layers[name].empty)
        assert likeness(got.layers[name], expected.layers[name]) > 0.9999


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("channels", [5, 192, 1024])
def test_tokens_that_are_all_equal_give_a_flagged_empty_map(channels: int, method: str) -> None:
    """Rounding must not be stretched into an image."""
    generator = torch.Generator().manual_seed(channels)
    A = torch.randn(4, 1, channels, generator=generator).expand(4, 1 + 7 * 9, channels).contiguous()
    G = torch.randn(4, 1 + 7 * 9, channels, generator=generator)
    if method in ("hirescam", "layercam"):  # their weights are each patch's own gradient
        G = G[:, :1].expand_as(G).contiguous()
    tokens = {"layer": Tokens(A, G)}
    grid = Grid(7, 9, prefix=1)
    checks, signed = Checks(), signed_maps(method, on_grid(tokens, grid))
    maps = layer_maps([signed], reach(tokens, grid), (112, 144), checks)["layer"]
    checks.read()
    assert maps.signed.any() and maps.empty.all() and not maps.normalised.any()


# ----------------------------------------------------------------------------------------------------- the map itself


@pytest.mark.parametrize("peak", [1e-44, 1e-40, 1e-38, 1e-20, 1.0, 1e20, 1e37, 3.4e38])
def test_normalising_maps_of_any_magnitude(peak: float) -> None:
    shares = np.random.default_rng(3).random((3, 5, 4)) ** 2
    raw = (shares / shares.max(axis=(1, 2), keepdims=True) * peak).astype(np.float32)
    got = normalise(torch.from_numpy(raw), (50, 40)).numpy()
    for one, expected in zip(got, raw.astype(np.float64), strict=True):
        resized = cv2.resize(expected / expected.max(), (40, 50), interpolation=cv2.INTER_LINEAR)
        resized = (resized - resized.min()) / (resized.max() - resized.min())
        np.testing.assert_allclose(one, resized, atol=2e-6)
        assert one.min() == 0 and one.max() == 1


@pytest.mark.parametrize("level", [0.0, 1e-45, 1e-40, 1.0, 0.1, 1e30, torch.finfo(torch.float32).max])
def test_normalising_maps_without_range(level: float) -> None:
    raw = torch.full((2, 14, 14), level)
    assert torch.equal(normalise(raw, (224, 224)), torch.zeros(2, 224, 224))
    raw[1, 3, 4] = torch.nextafter(raw[1, 3, 4], torch.tensor(0.0 if level > 1 else 4.0))
    almost = normalise(raw, (224, 224))
    assert torch.isfinite(almost).all() and almost.min() >= 0 and almost.max() <= 1


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e-12, 1.0, 1e12, 1e18])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_grad_cam_pp_neither_overflows_nor_vanishes(scale: float, epsilon: float) -> None:
    rng = np.random.default_rng(4)
    A = rng.random((2, 6, 4, 4)).astype(np.float32)  # positive: no pole
    G = (np.abs(rng.standard_normal(A.shape)) * scale).astype(np.float32)
    A64, G64 = A.astype(np.float64), G.astype(np.float64)
    divisor = 2 * G64**2 + G64**3 * A64.sum((2, 3), keepdims=True) + epsilon * (G64**2).max((1, 2, 3), keepdims=True)
    expected = ((G64**2 / divisor * G64).sum((2, 3), keepdims=True) * A64).sum(1)
    got = cam_method("gradcam++", epsilon)(torch.from_numpy(A), torch.from_numpy(G)).numpy()
    np.testing.assert_allclose(got / expected.max(), expected / expected.max(), rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("given", ["float32 image", "half image"])
def test_half_precision_weights_on_the_cpu(dtype: torch.dtype, site: str, given: str) -> None:
    image = images(5)
    expected = explained(tiny_detector(), image, target="fake", site=site)
    got = explained(
        tiny_detector().to(dtype), image.to(dtype) if given.startswith("half") else image, target="fake", site=site
    )
    for name in LAYERS:
        assert_fit_to_draw(got.layers[name])
        assert likeness(got.layers[name], expected.layers[name]) > (0.9999 if dtype == torch.float16 else 0.999)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_draws_images(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_detector(gradcam_save_dir=str(tmp_path)).to(dtype)
    maps = model.generate_gradcam({"image": images(2)}, save_visualizations=True, layers=["encoder.layers.2"])
    assert maps["encoder.layers.2"].dtype == torch.float32
    for i in range(2):
        drawn = cv2.imread(str(tmp_path / f"gradcam_encoder.layers.2_sample{i}.png"))
        assert drawn is not None and drawn.shape == (PIXELS, PIXELS, 3) and drawn.std() > 10


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1.0, 1e3, 1e4, 2e4])
def test_half_precision_gradients_large_and_small(factor: float) -> None:
    image = images(4)
    expected = explained(scaled_head(factor), image, target="fake")
    got = explained(scaled_head(factor).half(), image, target="fake")
    for name in LAYERS:
        assert_fit_to_draw(got.layers[name])
        assert likeness(got.layers[name], expected.layers[name]) > 0.999


def test_an_overflow_is_repeated_with_a_smaller_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = scaled_head(2e4).half(), images(4)
    assert torch.isfinite(explained(model, image, target="fake").layers[LAYERS[0]].signed).all()
    monkeypatch.setattr(tokens, "HALF_SCORE_SCALES", tokens.HALF_SCORE_SCALES[:1])
    with pytest.raises(NonFiniteMapError, match=r"\[0, 1, 2, 3\].*compute in fp32"):
        explained(model, image, target="fake")


def test_one_images_overflow_does_not_coarsen_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images with gradients of three magnitudes: each has the map that it has alone."""
    # The hook below changes some images' block and not others': all of them go through the whole block here.
    take_the_whole_block(monkeypatch)
    model, image = tiny_detector().half(), images(3)
    factors = torch.tensor([1e-4, 2e3, 1.0]).half()[:, None, None]
    factor: list[Tensor] = [factors]
    model.backbone.encoder.layers[3].register_forward_hook(lambda module, inputs, output: amplify(output, factor[0]))
    together = explained(model, image, target="fake")
    for i in range(3):
        factor[0] = factors[i : i + 1]
        alone = explained(model, image[i : i + 1], target="fake")
        for name in LAYERS:
            torch.testing.assert_close(
                together.layers[name].signed[i],
                alone.layers[name].signed[0],
                rtol=0.02,
                atol=1e-4 * float(alone.layers[name].raw.max()),
            )


def amplify(output: Any, factor: Tensor) -> Any:
    """The same values, with gradients `factor` times as large."""
    tokens = output[0] if isinstance(output, tuple) else output
    larger = tokens.detach() + (tokens - tokens.detach()) * factor
    return (larger, *output[1:]) if isinstance(output, tuple) else larger


@pytest.mark.parametrize("bias", [float("inf"), float("-inf"), float("nan"), 1e38])
def test_logits_that_are_not_finite_are_refused(bias: float) -> None:
    """The gradient of an infinite logit is finite, yet there is no decision to explain."""
    model = scaled_head(1.0, (0.0, bias))
    model = model.half() if bias == 1e38 else model
    with pytest.raises(NonFiniteMapError, match=r"logits of image\(s\) \[0, 1\]") as caught:
        explained(model, images(2), target="fake")
    assert caught.value.samples == (0, 1)


@pytest.mark.parametrize("level", [1e30, 3e38])
def test_pixels_beyond_all_measure_are_refused(level: float) -> None:
    image = images(3)
    image[1] *= level
    with pytest.raises((NonFiniteMapError, ValueError), match=r"image\(s\) \[1\]"):
        explained(tiny_detector().half(), image, target="fake")


def test_weights_with_nan_draw_nothing(commands: CommandServer, data_tree: DataTree, tmp_path: Path) -> None:
    weights = tiny_detector().state_dict()
    weights["head.bias"][1] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    arguments = data_tree.arguments("--weights_path", tmp_path / "nan.pth", "--gradcam_output_dir", tmp_path / "out")
    for more in ([], ["--gradcam_enabled", "--save_all_predictions"], ["--gradcam_enabled"]):
        finished = commands.run(SCRIPT, *arguments, "--overwrite", *more, cwd=tmp_path)
        errors = [line for line in finished.err.splitlines() if line.startswith("error: ")]
        assert finished.code == 2 and len(errors) == 1 and "Traceback" not in finished.err, finished
        assert "the weight head.bias holds NaN or infinity (1 of 2 values)" in errors[0]
        assert not list((tmp_path / "out").rglob("*.png"))


SCRIPT = "test_with_gradcam.py"


class NormBeforeTokens(torch.nn.Module):
    """Maps, a batch norm, and tokens: the gradient that the norm gets has channels last."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, channels, 3, 2, 1), torch.nn.BatchNorm2d(channels)
        self.mix, self.head = torch.nn.Linear(channels, channels), torch.nn.Linear(channels, 2)

    def score(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(tokens).square().mean(dim=1))
        return logits

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.norm(self.conv(pixels)).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_norm_before_tokens(count: int, memory_format: torch.memory_format) -> None:
    """Its gradient by the norm's formula: PyTorch's own is wrong on the CPU for a single image."""
    torch.manual_seed(0)
    model = NormBeforeTokens().double().eval()
    norm, pixels = model.norm, images(count, pixels=8).double().contiguous(memory_format=memory_format)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            tensor.add_(torch.rand_like(tensor))
        maps = model.conv(pixels)
        tokens = norm(maps).flatten(2).transpose(1, 2)
    tokens.requires_grad_()
    (G,) = torch.autograd.grad(model.score(tokens)[:, 1].sum(), [tokens])
    G = G * norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    expected = (G.transpose(1, 2).unflatten(2, maps.shape[2:]) * maps).sum(dim=1)
    found = explain(model, pixels, layers="conv", method="hirescam", target="fake").maps.signed
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
