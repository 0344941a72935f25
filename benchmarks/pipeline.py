"""What a whole run costs, from files to files, and where its time goes.

    python examples/make_demo_data.py --output data/pipeline --seed 7 --split test --videos 17
    python benchmarks/pipeline.py --data data/pipeline [--tower base|small] [--frames 400]

Runs `test_with_gradcam.py` as a user does, a process each, with random weights: start-up (one batch), plain evaluation,
heatmaps of 50 mistakes, heatmaps of every frame. Before them each step of the work alone, and one sample's images
beside matplotlib figures of the same. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.data.frames import Batch, frame_loader
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.drawing.overlays import encode, layer_images
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.settings.config import run_settings
from utils.gradcam_kit.store.sample import Sample
from utils.gradcam_kit.store.sample_folder import RenderedSample, comparison_image, write_sample

ROOT = Path(__file__).resolve().parent.parent
TOWERS: dict[str, dict[str, Any]] = {
    "base": {"name_or_path": "openai/clip-vit-base-patch16"},
    "small": {"architecture": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
                               "num_attention_heads": 6, "image_size": 224, "patch_size": 16}},
}  # fmt: skip
TRAINED = ROOT / "config" / "detector" / "clip_gradcam_demo.yaml"  # its maps are what real maps are like, not noise
LAYERS = [f"encoder.layers.{i}" for i in (11, 9, 7, 5)]
REPEATS = 20  # of the steps that take milliseconds
SAMPLES = 24  # images drawn for the time and size of one


class Setting(NamedTuple):
    """One tower, the data, and a folder for what the benchmark writes."""

    data: Path
    folder: Path
    batch: int
    device: str

    def flags(self, count: int) -> list[str]:
        """Those of a run over `count` frames, evenly spread, which get a dataset JSON of their own."""
        name = f"demo_{count}"
        everything = json.loads((self.data / "dataset_json" / "demo.json").read_text(encoding="utf-8"))["demo"]
        videos = [video for label in everything.values() for video in label.get("test", {}).values()]
        total, seen = sum(len(video["frames"]) for video in videos), 0
        for video in videos:
            paths = video["frames"]
            video["frames"] = [
                path for i, path in enumerate(paths, seen) if (i + 1) * count // total > i * count // total
            ]
            seen += len(paths)
        for label in everything.values():
            label["test"] = {key: video for key, video in label.get("test", {}).items() if video["frames"]}
        (self.folder / f"{name}.json").write_text(json.dumps({name: everything}), encoding="utf-8")
        return ["--detector_path", str(self.folder / "detector.yaml"), "--test_config", str(self.folder / "test.yaml"),
                "--test_dataset", name, "--batch_size", str(self.batch), "--device", self.device]  # fmt: skip


def write_configs(setting: Setting, tower: str) -> None:
    backbone = {**TOWERS[tower], "pretrained": False}
    detector = {"model_name": "clip_gradcam", "backbone_config": backbone, "loss_func": "cross_entropy",
                "resolution": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "workers": 2, "frame_num": {"test": 32},
                "gradcam_layers": LAYERS}  # fmt: skip
    (setting.folder / "detector.yaml").write_text(yaml.safe_dump(detector))
    labels = {"demo_Real": 0, **{f"{kind.stem}_Fake": 1 for kind in (setting.data / "dataset_json").glob("*.json")}}
    test = {"dataset_json_folder": str(setting.folder), "dataset_root_rgb": str(setting.data), "label_dict": labels}
    (setting.folder / "test.yaml").write_text(yaml.safe_dump(test))


def run_seconds(setting: Setting, count: int, *flags: str) -> float:
    """One whole process."""
    out = setting.folder / "out"
    command = [sys.executable, str(ROOT / "test_with_gradcam.py"), *setting.flags(count), "--random_weights",
               "--gradcam_output_dir", str(out), "--overwrite", *flags]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return seconds


def milliseconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median of `repeats`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


class Steps(NamedTuple):
    """Milliseconds per frame."""

    decode: float
    forward: float
    backward: float
    render: float
    compose: float
    encode: float
    write: float
    sample: float  # composing, encoding and writing together, as a run does

    @property
    def drawing(self) -> float:
        return self.render + self.sample


def load(setting: Setting, count: int, yaml_path: Path | None = None) -> tuple[LoadedDetector, list[Frame]]:
    """The detector of that YAML, or the benchmark's with random weights, and `count` frames."""
    arguments = setting.flags(count)
    flags: dict[str, Any] = {"test_dataset": [f"demo_{count}"], "gradcam_enabled": True}
    if yaml_path is None:
        flags["weights_path"] = ""
    settings = run_settings(yaml_path or Path(arguments[1]), Path(arguments[3]), flags)
    torch.manual_seed(0)
    detector = load_detector(settings.detector, find_device(setting.device), random_weights=yaml_path is None)
    return detector, read_dataset(settings.datasets[0], settings.data)


def batch_of(detector: LoadedDetector, frames: list[Frame]) -> Batch:
    return next(iter(frame_loader(frames, detector.settings.resolution, len(frames), 0)))


def samples_of(detector: LoadedDetector, batch: Batch) -> list[RenderedSample]:
    """The images of the batch, explained and drawn."""
    explanation = detector.explain(batch.pixels, target="fake")
    drawn = layer_images(batch.pixels.to(detector.device), explanation.layers, "jet")
    return [
        RenderedSample(
            Sample.of(frame, explanation, i, layers, detector.settings), pixels.permute(1, 2, 0).numpy(), layers
        )
        for i, (frame, pixels, layers) in enumerate(zip(batch.frames, batch.pixels, drawn, strict=True))
    ]


def measured_steps(detector: LoadedDetector, frames: list[Frame], samples: list[RenderedSample], folder: Path) -> Steps:
    """Each step alone. All but the detector's own arithmetic on one thread."""
    batch, size = batch_of(detector, frames), len(frames)
    forward = milliseconds(lambda: detector.predict(batch.pixels), 5) / size
    explain = milliseconds(lambda: detector.explain(batch.pixels, target="fake"), 5) / size
    explanation = detector.explain(batch.pixels, target="fake")
    on_device = batch.pixels.to(detector.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decode = milliseconds(lambda: batch_of(detector, frames), 3) / size
    render = milliseconds(lambda: layer_images(on_device, explanation.layers, "jet")) / size
    torch.set_num_threads(threads)
    compose = milliseconds(lambda: [comparison_image(*sample[:3]) for sample in samples], 5) / len(samples)
    images = [[*(layer.overlay for layer in sample.layers), comparison_image(*sample[:3])] for sample in samples]
    encoding = milliseconds(lambda: [encode(image) for five in images for image in five], 5) / len(samples)
    fresh = (folder / str(count) for count in itertools.count())  # a run replaces nothing

    def write_samples() -> None:
        into = next(fresh)
        into.mkdir(parents=True)
        for one in samples:
            write_sample(into / str(one.sample.index), one)

    whole = milliseconds(write_samples, 5) / len(samples)
    files = [path for path in (folder / "0").rglob("*") if path.is_file()]
    contents = [(path.relative_to(folder / "0"), path.read_bytes()) for path in files]

    def write_bytes() -> None:
        into = next(fresh)
        for name, data in contents:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(data)

    writing = milliseconds(write_bytes, 5) / len(samples)
    return Steps(decode, forward, explain - forward, render, compose, encoding, writing, whole)


def matplotlib_figures(sample: RenderedSample, folder: Path) -> None:
    """The usual recipe for the same images: a figure an overlay, and one with all of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(exist_ok=True)
    for layer in sample.layers:
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.imshow(sample.image)
        axes.imshow(layer.raw, cmap="jet", alpha=0.5, interpolation="bilinear", extent=(0, 224, 224, 0))
        axes.axis("off")
        figure.savefig(folder / f"{layer.name}.png", dpi=100)
        plt.close(figure)
    figure, panels = plt.subplots(1, 1 + len(sample.layers), figsize=(5 * (1 + len(sample.layers)), 5))
    for axes, image in zip(panels, [sample.image, *(layer.overlay for layer in sample.layers)], strict=True):
        axes.imshow(image)
        axes.axis("off")
    figure.savefig(folder / "comparison.png", dpi=100)
    plt.close(figure)


def kibibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1024


def print_runs(setting: Setting, frames: int, steps: Steps) -> None:
    """One run each, of the same frames. "As named": the map is neither tried beside others nor checked."""
    start_up = run_seconds(setting, setting.batch)
    some, every = ("--gradcam_enabled",), ("--gradcam_enabled", "--save_all_predictions")
    named = ("--calibration_images", "0", "--check_maps", "off")
    balanced = ("--gradcam_method", "hirescam", "--gradcam_site", "residual", "--gradcam_backward", "balanced")
    times = {
        "plain evaluation": run_seconds(setting, frames),
        "heatmaps of 50 mistakes, as named": run_seconds(setting, frames, *some, *named),
        "heatmaps of 50 mistakes, tried and each checked": run_seconds(setting, frames, *some),
        "heatmaps of every frame, as named": run_seconds(setting, frames, *every, *named),
        "heatmaps of every frame, as named, balanced": run_seconds(setting, frames, *every, *named, *balanced),
    }
    plain = times["plain evaluation"]
    print(
        f"\n| whole run of {frames} frames | s | frames/s less {start_up:.1f} s of start-up | ÷ plain evaluation |\n"
        "|---|---|---|---|"
    )
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.1f} | {frames / (seconds - start_up):.2f} | {seconds / plain:.2f} |")
    cores = os.cpu_count() or 1
    floor = frames * (steps.forward + steps.backward + steps.drawing / cores) / 1000
    total = times["heatmaps of every frame, as named"] - start_up
    print(f"\nEvery frame as named, less start-up, ÷ (compute + drawing ÷ {cores} cores): {total / floor:.3f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tower", choices=sorted(TOWERS), default="base")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        setting = Setting(arguments.data.resolve(), Path(name), arguments.batch, arguments.device)
        write_configs(setting, arguments.tower)
        detector, frames = load(setting, setting.batch)
        trained, some = load(setting, SAMPLES, TRAINED)
        samples = samples_of(trained, batch_of(trained, some))
        steps = measured_steps(detector, frames, samples, setting.folder / "samples")
        print(f"Tower {arguments.tower}, batch {arguments.batch}, {arguments.device}, torch {torch.__version__},"
              f" {os.cpu_count()} cores, layers {', '.join(LAYERS)}\n")  # fmt: skip
        print("| step | ms a frame |\n|---|---|")
        print("\n".join(f"| {step} | {value:.1f} |" for step, value in steps._asdict().items()))
        figures = milliseconds(lambda: matplotlib_figures(samples[0], setting.folder / "figures"), 3)
        ours = f"{steps.drawing:.1f} ms, {kibibytes(setting.folder / 'samples' / '0') / SAMPLES:.0f} KiB"
        theirs = f"{figures:.0f} ms, {kibibytes(setting.folder / 'figures'):.0f} KiB"
        print(f"\nOne sample (four overlays, comparison, grey maps, metadata; mean of {SAMPLES}), one core: {ours};"
              f" matplotlib figures: {theirs}, {figures / steps.drawing:.0f} times as long.")  # fmt: skip
        print_runs(setting, arguments.frames, steps)


if __name__ == "__main__":
    main()
