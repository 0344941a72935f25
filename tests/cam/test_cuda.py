"""The same on a CUDA device as on the CPU. Everything here skips where there is no device."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import test_with_gradcam
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import ARCHITECTURE, images, tiny_detector
from tests.helpers.paths import ROOT
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam_kit.drawing.overlays import overlay
from utils.gradcam_kit.engine.checks import Checks
from utils.gradcam_kit.engine.methods import METHODS
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.explaining.explanation import Explanation
from utils.gradcam_kit.explaining.images import check_pixels
from utils.gradcam_kit.explaining.one_pass import BatchRequest, Pending, explained_in
from utils.gradcam_kit.run.dataset_run import DatasetRun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")
LAYERS = ["encoder.layers.3", "encoder.layers.1"]


@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_cpu(method: str, site: str) -> None:
    """In float64 on both, where TF32 plays no part: what is left is the order of sums."""
    image = images(5).double()
    wanted = tiny_detector().double().explain({"image": image}, layers=LAYERS, method=method, site=site, target="fake")
    model = tiny_detector().double().cuda()
    found = model.explain({"image": image.cuda()}, layers=LAYERS, method=method, site=site, target="fake")
    torch.testing.assert_close(found.logits.cpu(), wanted.logits, rtol=1e-9, atol=1e-9)
    for name in LAYERS:
        assert found.layers[name].normalised.is_cuda
        torch.testing.assert_close(
            found.layers[name].signed.cpu(), wanted.layers[name].signed, rtol=1e-6, atol=1e-9, msg=name
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_maps(dtype: torch.dtype) -> None:
    model, image = tiny_detector().cuda(), images(5).cuda()
    wanted = model.explain({"image": image}, layers=LAYERS, target="fake")
    with torch.autocast("cuda", dtype=dtype):
        found = model.explain({"image": image}, layers=LAYERS, target="fake")
    for name in LAYERS:
        assert found.layers[name].signed.dtype == torch.float32
        pair = torch.stack([one.layers[name].signed.flatten() for one in (wanted, found)])
        assert torch.corrcoef(pair)[0, 1] > 0.99


def test_overlays_are_those_of_the_cpu() -> None:
    """To one grey level: a value that lies half-way between two may be rounded either way."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    maps, empty = torch.rand(4, 32, 32, generator=generator), torch.tensor([False, True, False, False])
    found = overlay(plain.cuda(), maps.cuda(), empty).cpu()
    wanted = overlay(plain, maps, empty)
    assert (found.int() - wanted.int()).abs().max() <= 1


def test_the_last_block_alone_keeps_little_memory() -> None:
    """The graph begins at the block that is explained: of 24 blocks the last needs about a 24th beyond a plain pass."""
    model = tiny_detector(backbone_config={"architecture": {**ARCHITECTURE, "num_hidden_layers": 24}}).cuda()
    image = images(64).cuda()

    def peak(run: Callable[[], object]) -> int:
        run()  # what cuBLAS takes once
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()

    def explained(layer: str) -> int:
        return peak(lambda: model.explain({"image": image}, layers=[layer], target="fake"))

    with torch.no_grad():
        plain = peak(lambda: model({"image": image}))
    first, last = explained("encoder.layers.0") - plain, explained("encoder.layers.23") - plain
    saved = saved_bytes(model, lambda: model.explain({"image": image}, layers=["encoder.layers.0"], target="fake"))
    assert first >= saved / 2  # there is something to save
    assert last <= 0.2 * first, f"{last / first:.3f}"


def test_random_state_and_flags_are_left_alone() -> None:
    model = tiny_detector().cuda().train()
    before = torch.cuda.get_rng_state()
    model.explain({"image": images(2).cuda()}, target="fake")
    assert model.training and torch.equal(torch.cuda.get_rng_state(), before)
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Inside, PyTorch raises RuntimeError where the device is waited for without an event."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pytorch_tells_who_waits() -> None:
    with refusing_to_wait(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("target", ["margin", "predicted"])
def test_an_explanation_is_handed_over_without_a_wait(target: str, backward: str, method: str) -> None:
    model, image = tiny_detector().cuda(), images(3).cuda()
    asked = BatchRequest([Recipe(method, LAYERS, "residual", backward)], target, False)

    def begin(checks: Checks) -> Explanation:
        check_pixels(image, "image", checks)
        return explained_in(model.as_subject(), {"image": image}, asked, checks)

    wanted = Pending(begin).result()
    with refusing_to_wait():
        found = Pending(begin).result()
    assert found.target == wanted.target
    for name in LAYERS:
        torch.testing.assert_close(found.layers[name].signed, wanted.layers[name].signed, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("more", [[], ["--save_all_predictions"], ["--gradcam_target", "label"]], ids=" ".join)
def test_the_loop_of_a_run_never_waits(
    more: list[str], data_tree: DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the events of what comes back from the device."""
    loops: list[str] = []
    for_each = DatasetRun._for_each

    def watched(run: DatasetRun, batches: Any, step: Any, what: str) -> None:
        loops.append(what)
        with refusing_to_wait():
            for_each(run, batches, step, what)

    monkeypatch.setattr(DatasetRun, "_for_each", watched)
    flags = data_tree.arguments(
        "--gradcam_enabled", "--check_maps", "off", *more, "--gradcam_output_dir", tmp_path / "out"
    )
    flags[flags.index("--device") + 1] = "cuda"
    test_with_gradcam.main(flags)
    assert loops == [", with heatmaps"] if "--save_all_predictions" in more else ["", ", heatmaps"]


def test_a_whole_run_agrees_with_the_cpus(data_tree: DataTree, tmp_path: Path) -> None:
    def probabilities(device: str) -> dict[str, float]:
        out = tmp_path / device
        flags = [*data_tree.arguments("--gradcam_enabled", "--save_all_predictions", "--gradcam_output_dir", out)]
        flags[flags.index("--device") + 1] = device
        command = [sys.executable, str(ROOT / "test_with_gradcam.py"), *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(list((out / "toy").rglob("gradcam_comparison.png"))) == 24
        with (out / "toy" / "predictions.csv").open(newline="") as table:
            return {row["path"]: float(row["prob_fake"]) for row in csv.DictReader(table)}

    on_cpu, on_cuda = probabilities("cpu"), probabilities("cuda")
    assert on_cpu.keys() == on_cuda.keys()
    np.testing.assert_allclose([on_cuda[path] for path in on_cpu], list(on_cpu.values()), atol=1e-4)
