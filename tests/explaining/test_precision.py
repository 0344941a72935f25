"""The backward pass in lower precision: what is rounded, what is not, and how far maps move."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, images, spread, tiny_config, tiny_detector
from tests.helpers.paths import ROOT
from utils.gradcam import explain
from utils.gradcam_kit.base.allowed import BACKWARD_PRECISIONS
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.explaining import precision
from utils.gradcam_kit.explaining.precision import faster_precision, matrix_products_in, resolved_precision

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]


def test_only_the_factors_of_matrix_products_are_rounded() -> None:
    """The gradient of tanh(x W) V, by hand: dx = (1 - tanh²) * (g Vᵀ) Wᵀ with every product's factors in bfloat16."""
    torch.manual_seed(0)
    x, w, v = torch.randn(5, 8, requires_grad=True), torch.randn(8, 6), torch.randn(6, 3)
    hidden = torch.tanh(x @ w)
    g = torch.randn(5, 3)
    with matrix_products_in("bf16"):
        (found,) = torch.autograd.grad(hidden @ v, x, g)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.bfloat16() @ b.bfloat16()).float()

    expected = product(product(g, v.T) * (1 - hidden.detach().square()), w.T)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)
    assert found.dtype == torch.float32 and not torch.equal(found, (g @ v.T * (1 - hidden.square())) @ w.T)


@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "attngrad"])
def test_maps_in_bf16_are_those_of_fp32_but_for_rounding(method: str, backward: str) -> None:
    """Emulated on any machine: bfloat16 factors give the same numbers wherever they are multiplied."""
    architecture = {
        **ARCHITECTURE,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "image_size": 160,
    }
    config = tiny_config(backbone_config={"architecture": architecture}, resolution=160)
    torch.manual_seed(0)
    model: Any = CLIPDetectorWithGradCAM(config).eval()
    model.load_state_dict(model.state_dict())
    given = images(4, pixels=160)
    options: dict[str, Any] = {"layers": NAMES, "method": method, "target": "fake", "backward": backward}
    exact = model.explain(given, **options)
    model.gradcam = replace(model.gradcam, backward_precision="bf16")
    rounded = model.explain(given, **options)
    assert torch.equal(exact.logits, rounded.logits)
    for name in NAMES:
        for one, other in zip(exact.layers[name].signed, rounded.layers[name].signed, strict=True):
            assert spearmanr(one.flatten(), other.flatten()).statistic >= 0.999, name
    assert not torch.equal(exact.layers[NAMES[1]].signed, rounded.layers[NAMES[1]].signed)


def test_a_float64_model_is_not_rounded() -> None:
    model = tiny_detector().double()
    given = images(2).double()
    exact = model.explain(given, layers=NAMES[1])
    model.gradcam = replace(model.gradcam, backward_precision="bf16")
    assert torch.equal(model.explain(given, layers=NAMES[1]).layers[NAMES[1]].raw, exact.layers[NAMES[1]].raw)


def test_tf32_is_put_back_also_after_an_error() -> None:
    matmul: Any = torch.backends.cuda.matmul

    def state() -> str:  # either switch says it
        return str(matmul.fp32_precision) if hasattr(matmul, "fp32_precision") else torch.get_float32_matmul_precision()

    before, seen = state(), []

    def failing() -> None:
        with matrix_products_in("tf32"):
            seen.append(state())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert seen in (["tf32"], ["high"])
    assert state() == before
    assert torch.get_float32_matmul_precision() == "highest"


SWITCHES = [
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
]
STATE = """
def state():
    found = []
    for read in (lambda: torch.backends.cuda.matmul.fp32_precision, lambda: torch.backends.mkldnn.matmul.fp32_precision,
                 lambda: torch.backends.fp32_precision, torch.get_float32_matmul_precision,
                 lambda: torch.backends.cuda.matmul.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("of the other switch")
    return found
"""


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9 has one switch"
)
def test_tf32_goes_with_every_switch_of_pytorch(switch: str) -> None:
    """In a process of its own, since PyTorch has no way back from one switch to the other."""
    program = f"""
import torch
from tests.helpers.detectors import images, spread, tiny_detector
{STATE}
model = spread(tiny_detector())
{switch}
before = state()
plain = model.explain({{"image": images(2)}}).layers
model.gradcam = __import__("dataclasses").replace(model.gradcam, backward_precision="tf32")
found = model.explain({{"image": images(2)}}).layers
assert state() == before, (before, state())
for name, maps in found.items():
    torch.testing.assert_close(maps.raw, plain[name].raw, rtol=1e-2, atol=1e-3)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="needs PyTorch 2.9")
def test_the_newer_switch_is_left_as_it_stood() -> None:
    """Whoever has set it cannot read the older one any more."""
    matmul: Any = torch.backends.cuda.matmul
    before, seen = matmul.fp32_precision, []
    try:
        for value in ("tf32", "ieee"):
            matmul.fp32_precision = value
            with matrix_products_in("tf32"):
                seen.append(matmul.fp32_precision)
            assert matmul.fp32_precision == value
    finally:
        matmul.fp32_precision = before
    assert seen == ["tf32", "tf32"]


@pytest.mark.parametrize(
    ("seconds", "chosen"), [([2.0, 1.0], ("bf16", 2.0)), ([2.0, 1.9], ("fp32", 1.0)), ([1.0, 3.0], ("fp32", 1.0))]
)
def test_auto_takes_what_is_faster_here(
    seconds: list[float], chosen: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    faster_precision.cache_clear()
    given = iter(seconds)
    monkeypatch.setattr(precision, "_seconds", lambda work, device: next(given))
    assert faster_precision("cpu") == chosen and resolved_precision("auto", torch.device("cpu")) == chosen[0]
    assert resolved_precision("tf32", torch.device("cpu")) == "tf32"
    faster_precision.cache_clear()


def test_an_unknown_precision_is_refused_by_name() -> None:
    model = spread(tiny_detector())
    with pytest.raises(InputError, match=r"backward_precision 'fp16' is unknown; .*allowed: auto, fp32, bf16, tf32"):
        explain(
            model.backbone, images(1), forward=lambda x: model({"image": x}), backward_precision="fp16", target="fake"
        )
    with pytest.raises(InputError, match=r"gradcam_backward_precision is 'half'; .*allowed: auto, fp32"):
        tiny_detector(gradcam_backward_precision="half")
    assert BACKWARD_PRECISIONS == ("auto", "fp32", "bf16", "tf32")
