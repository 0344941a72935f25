"""How cost and memory grow with frames, layers and pixels: three plots.

    python benchmarks/scale.py [--frames 2000 20000 200000] [--output benchmarks/plots]

Frames: whole runs of `test_with_gradcam.py` (a process each, tiny tower, 16 × 16 images, heatmaps of 50 mistakes),
their seconds, CPU seconds and the peak memory of the process. Layers and pixels: one explanation of a ViT-B/16 in this
process; pixels by larger images with interpolated positions. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

ROOT = Path(__file__).resolve().parent.parent
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 8,
        "image_size": 16}  # fmt: skip
FILES = 200  # images on disk; more frames than that name them again
BATCH, ROUNDS = 4, 5
LABELS = ("toy_Real", "toy_Fake")


def write_data(folder: Path, frames: int) -> list[str]:
    """Images, dataset JSON and configs; returns the flags of a run over them."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        for i in range(FILES // 2):
            cv2.imwrite(str(folder / f"{label}{i}.png"), rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    videos: dict[str, Any] = {
        label: {
            "test": {
                f"{v:06d}": {"label": label, "frames": [f"{folder}/{label}{i}.png" for i in range(FILES // 2)]}
                for v in range(frames // FILES)
            }
        }
        for label in LABELS
    }
    (folder / "big.json").write_text(json.dumps({"big": videos}))
    detector = {"model_name": "clip_gradcam", "loss_func": "cross_entropy", "backbone_config": {"architecture": TINY},
                "test_dataset": ["big"], "resolution": 16, "test_batchSize": 64, "workers": 2}  # fmt: skip
    (folder / "detector.yaml").write_text(yaml.safe_dump(detector))
    test = {"dataset_json_folder": str(folder), "label_dict": {"toy_Real": 0, "toy_Fake": 1}}
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    return ["--detector_path", str(folder / "detector.yaml"), "--test_config", str(folder / "test.yaml"),
            "--random_weights", "--device", "cpu", "--gradcam_enabled", "--gradcam_samples", "50",
            "--gradcam_output_dir", str(folder / "out")]  # fmt: skip


def run(frames: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds (of its decoding processes, too) and peak MiB of a whole run."""
    with tempfile.TemporaryDirectory() as name:
        flags = write_data(Path(name), frames)
        with (Path(name) / "said").open("w+") as said:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "test_with_gradcam.py"), *flags], stdout=said, stderr=said
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            said.seek(0)
            if status:
                raise SystemExit(said.read())
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def detector_of_base() -> CLIPDetectorWithGradCAM:
    torch.manual_seed(0)
    backbone = {"name_or_path": "openai/clip-vit-base-patch16", "pretrained": False}
    return CLIPDetectorWithGradCAM({"loss_func": "cross_entropy", "backbone_config": backbone}).eval()


def explain_seconds(detector: CLIPDetectorWithGradCAM, cases: Sequence[tuple[int, int]]) -> list[float]:
    """Of the last `layers` blocks, at `side` pixels a side: medians, the cases in turn."""
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(ROUNDS + 1):
        for one, (layers, side) in zip(times, cases, strict=True):
            names = [f"encoder.layers.{i}" for i in range(12 - layers, 12)]
            image = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(1))
            start = time.perf_counter()
            detector.explain({"image": image}, layers=names, target="fake")
            one.append(time.perf_counter() - start)
    return [statistics.median(one[1:]) for one in times]


def plot(path: Path, x: Sequence[float], y: Sequence[float], labels: tuple[str, str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    slope, offset = np.polyfit(x, y, 1)
    figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    ends = np.array([0, max(x)])
    axes.plot(ends, offset + slope * ends, color="0.7", label=f"{offset:.3g} + {slope:.3g} x")
    axes.plot(x, y, "o", color="tab:blue")
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[2000, 20_000, 200_000])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "plots")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    # First: what a process has at its peak counts from that of the one that starts it.
    runs = [run(count) for count in arguments.frames]
    thousands = [count / 1000 for count in arguments.frames]
    plot(arguments.output / "frames.png", thousands, [seconds for seconds, *_ in runs], ("thousand frames", "s"))
    print("| frames | s | CPU s | peak MiB |\n|---|---|---|---|")
    for count, (seconds, cpu, peak) in zip(arguments.frames, runs, strict=True):
        print(f"| {count} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} |")
    detector = detector_of_base()
    layers = [1, 2, 4, 6, 8, 10, 12]
    sides = [224, 272, 320, 384, 448]
    by_layers = explain_seconds(detector, [(count, 224) for count in layers])
    by_pixels = explain_seconds(detector, [(4, side) for side in sides])
    pixels = [side * side / 1000 for side in sides]
    plot(arguments.output / "layers.png", layers, by_layers, ("last blocks explained", "s"))
    plot(arguments.output / "pixels.png", pixels, by_pixels, ("thousand pixels an image", "s"))
    print(
        "\n| last blocks explained | s |\n|---|---|\n"
        + "\n".join(f"| {n} | {s:.2f} |" for n, s in zip(layers, by_layers, strict=True))
    )
    print(
        "\n| pixels a side | s |\n|---|---|\n"
        + "\n".join(f"| {n} | {s:.2f} |" for n, s in zip(sides, by_pixels, strict=True))
    )


if __name__ == "__main__":
    main()
