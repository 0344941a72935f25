"""What heatmaps cost: our engine beside torchcam, captum, pytorch-grad-cam and plain backward passes, in one process.

    python benchmarks/engine.py [--tower large|base] [--device cpu|cuda] [--batch 4] [--rounds 5]
        [--only PATTERN]

All contenders run in turn, round after round, so that a slow minute of the machine hits them all; the median counts.
Time is given as a ratio to the plain fp32 forward pass of the same process. Saved bytes are what autograd keeps for
backward, each storage once, parameters excluded. Prints Markdown.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam_kit.base.allowed import METHOD_NAMES

TOWERS = {
    "large": ("openai/clip-vit-large-patch14", (23, 20, 15, 10)),
    "base": ("openai/clip-vit-base-patch16", (11, 9, 7, 5)),
}
Contenders = dict[str, Callable[[], Any]]
# What these keep is not counted: counting holds on to the graphs of all their passes at once, more than 16 GiB.
MANY_PASSES = ("one full backward per layer", "captum, four layers one by one", "pytorch-grad-cam, four layers")


class Logits(nn.Module):
    """The detector as a module from image to logits, as the peers want it."""

    def __init__(self, detector: CLIPDetectorWithGradCAM) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        return self.detector({"image": image})["cls"]


class Bench(NamedTuple):
    """One tower on one device with its batch."""

    detector: CLIPDetectorWithGradCAM
    image: Tensor
    blocks: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        return [f"encoder.layers.{i}" for i in self.blocks]

    @property
    def norms(self) -> list[nn.Module]:
        return [self.detector.backbone.encoder.layers[i].layer_norm1 for i in self.blocks]

    def to_grid(self, tokens: Tensor) -> Tensor:
        side = round((tokens.shape[1] - 1) ** 0.5)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def plain(bench: Bench) -> Any:
    with torch.no_grad():
        return bench.detector({"image": bench.image})


def in_bf16(bench: Bench, run: Callable[[], Any]) -> Callable[[], Any]:
    def autocasted() -> Any:
        with torch.autocast(bench.image.device.type, dtype=torch.bfloat16):
            return run()

    return autocasted


def explain(bench: Bench, layers: list[str], method: str = "gradcam") -> Callable[[], Any]:
    return lambda: bench.detector.explain({"image": bench.image}, layers=layers, method=method, target="fake")


def in_backward_precision(bench: Bench, precision: str, options: dict[str, Any]) -> Callable[[], Any]:
    """An explanation whose backward pass multiplies in that precision, the forward pass as ever."""

    def run() -> Any:
        detector, before = bench.detector, bench.detector.gradcam
        detector.gradcam = replace(before, backward_precision=precision)
        try:
            return detector.explain({"image": bench.image}, **options)
        finally:
            detector.gradcam = before

    return run


def ours(bench: Bench) -> Contenders:
    runs: Contenders = {"ours, four layers": explain(bench, bench.names)}
    runs["ours, last block alone"] = explain(bench, bench.names[:1])
    balanced: dict[str, Any] = {"method": "hirescam", "target": "fake", "site": "residual", "backward": "balanced"}
    for name, completeness in (("balanced", False), ("balanced, with its test of completeness", True)):
        asked = {**balanced, "layers": bench.names, "completeness": completeness}
        runs[f"ours, four layers, {name}"] = partial(bench.detector.explain, {"image": bench.image}, **asked)
        if not completeness:
            runs["ours, four layers, balanced, backward in bf16"] = in_backward_precision(bench, "bf16", asked)
    plain_maps = {"layers": bench.names, "target": "fake"}
    for precision in ("bf16", "tf32"):
        runs[f"ours, four layers, backward in {precision}"] = in_backward_precision(bench, precision, plain_maps)
    for method in METHOD_NAMES:
        if method != "gradcam":
            runs[f"ours, four layers, {method}"] = explain(bench, bench.names, method)
    runs["plain forward, bf16"] = in_bf16(bench, lambda: plain(bench))
    runs["ours, four layers, bf16"] = in_bf16(bench, runs["ours, four layers"])
    runs["ours, last block alone, bf16"] = in_bf16(bench, runs["ours, last block alone"])
    return runs


def one_backward_per_layer(bench: Bench) -> Any:
    """The usual recipe: hook a layer, run forward and a full backward, once for each layer."""
    for norm in bench.norms:
        handle = norm.register_forward_hook(lambda module, inputs, output: output.retain_grad())
        bench.detector({"image": bench.image})["cls"][:, 1].sum().backward()
        handle.remove()
        bench.detector.zero_grad()


def torchcam_run(bench: Bench) -> Callable[[], Any]:
    from torchcam.methods import GradCAM

    model = Logits(bench.detector)

    def run() -> Any:
        with GradCAM(model, target_layer=list(bench.norms), reshape_transform=bench.to_grid) as extractor:
            return extractor(1, model(bench.image))

    return run


def captum_run(bench: Bench) -> Callable[[], Any]:
    from captum.attr import LayerGradCam

    model = Logits(bench.detector)
    return lambda: [LayerGradCam(model, norm).attribute(bench.image, target=1) for norm in bench.norms]


class Hollow(ModuleType):
    """A module that has every name and nothing behind it."""

    __path__: list[str] = []  # noqa: RUF012  a module's own attribute, which makes it a package

    def __getattr__(self, name: str) -> None:
        return None


def without_torchvision() -> None:
    """Where there is none, let pytorch-grad-cam be imported all the same: only its image loading wants it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = Hollow(name)


def pytorch_grad_cam_run(bench: Bench) -> Callable[[], Any]:
    without_torchvision()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = Logits(bench.detector)
    targets = [ClassifierOutputTarget(1)] * len(bench.image)

    def run() -> Any:
        with GradCAM(model, list(bench.norms), reshape_transform=bench.to_grid) as cam:
            maps = cam(bench.image, targets)
        bench.detector.zero_grad()
        return maps

    return run


def peers(bench: Bench) -> Contenders:
    runs: Contenders = {"one full backward per layer": lambda: one_backward_per_layer(bench)}
    for name, make in (
        ("torchcam, four layers", torchcam_run),
        ("captum, four layers one by one", captum_run),
        ("pytorch-grad-cam, four layers", pytorch_grad_cam_run),
    ):
        try:
            runs[name] = make(bench)
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    return runs


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_mebibytes(run: Callable[[], Any], device: torch.device) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 2**20


def correlation(bench: Bench) -> float:
    """Lowest correlation of a bf16 map with its fp32 map, over the four layers."""
    run = explain(bench, bench.names)
    fp32, bf16 = run(), in_bf16(bench, run)()
    pairs = [(fp32.layers[name].signed.flatten(), bf16.layers[name].signed.flatten()) for name in bench.names]
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", choices=sorted(TOWERS), default="large")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders whose name this pattern finds, beside the plain forward")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name, blocks = TOWERS[arguments.tower]
    torch.manual_seed(0)
    backbone = {"name_or_path": name, "pretrained": False}
    detector = CLIPDetectorWithGradCAM({"loss_func": "cross_entropy", "backbone_config": backbone}).eval().to(device)
    bench = Bench(detector, torch.randn(arguments.batch, 3, 224, 224, device=device), blocks)

    wanted = {name: run for name, run in {**ours(bench), **peers(bench)}.items() if re.search(arguments.only, name)}
    runs: Contenders = {"plain forward": lambda: plain(bench), **wanted}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 1):  # the first round warms the allocator and is dropped
        for contender, run in runs.items():
            times[contender].append(seconds(run, device))
    base = statistics.median(times["plain forward"][1:])
    print(f"{name}, batch {arguments.batch}, {device}, layers {', '.join(map(str, blocks))},"
          f" median of {arguments.rounds}; plain forward {1000 * base:.0f} ms\n")  # fmt: skip
    print(
        "| | time ÷ plain forward, median (fastest) | MiB saved for backward |"
        + (" peak MiB |" if device.type == "cuda" else "")
    )
    print("|---|---|---|" + ("---|" if device.type == "cuda" else ""))
    for contender, run in runs.items():
        ratio = statistics.median(times[contender][1:]) / base
        fastest = min(times[contender][1:]) / min(times["plain forward"][1:])
        memory = f" {peak_mebibytes(run, device):.0f} |" if device.type == "cuda" else ""
        saved = "–" if contender in MANY_PASSES else f"{saved_bytes(detector, run) / 2**20:.0f}"
        print(f"| {contender} | {ratio:.2f} ({fastest:.2f}) | {saved} |{memory}", flush=True)
    if device.type != "cuda":
        print("\nPeak memory and the figures of a GPU are missing: this machine has none.")
    print(f"\nLowest correlation of a bf16 map with its fp32 map: {correlation(bench):.5f}")


if __name__ == "__main__":
    main()
