"""A whole run against the host's own `test.py`: same frames, weights and tower; CPU seconds and metrics side by side.

    python benchmarks/against_host.py TREE [--frames 800] [--rounds 2] [--workers 2]

TREE: DeepfakeBench's `training` folder; it is copied, and only the copy is touched. It needs what the host imports (see
docs/host_trees.md; albumentations 1.1.0). The tower is small, so that reading, start-up and metrics show: width 768,
two blocks, patches of 32 pixels. The host runs without a GPU because three things stand in: the name of a CUDA device,
NumPy's old table of types, and the file of dlib's landmarks; its download is a folder here. CPU seconds are those of
the process and of all it has started, one thread each, since several spin while they wait. Prints Markdown; exit code 1
where a metric differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.helpers.real_towers import library  # noqa: E402  found through the line above
from tools.install_into_host import Installation, extension_files  # noqa: E402

NAME = "Celeb-DF-v2"
LABELS = {"CelebDFv2_real": 0, "CelebDFv2_fake": 1}
TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12,
         "image_size": 224, "patch_size": 32}  # fmt: skip
HUB = "openai/clip-vit-base-patch16"  # the name that the host loads, here a folder
PIXELS, FRAMES = 256, 8  # of a frame, and frames of a video
METRICS = ("acc", "auc", "eer", "ap")
# What stands in for a GPU build, for both sides; the landmarks' file is for the host alone.
START = """
import runpy, sys
import numpy as np
import torch
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
if sys.argv[0].endswith("/test.py"):
    import dlib
    import transformers
    np.sctypes = {"int": [np.int32], "uint": [np.uint8], "float": [np.float32], "complex": [], "others": []}
    torch.cuda.get_device_name = lambda *which: "none"
    dlib.shape_predictor = lambda file: None
    transformers.AutoProcessor.from_pretrained = lambda name: None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Finished(NamedTuple):
    """A process that has ended well."""

    cpu_seconds: float
    output: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="against_host_"))
    try:
        prepare(work, arguments.tree, arguments.frames, arguments.workers)
        differences = compare(work, arguments.frames, arguments.rounds)
    finally:
        shutil.rmtree(work)
    return int(max(differences) > 1e-9)


def prepare(work: Path, tree: Path, frames: int, workers: int) -> None:
    """The copied tree with our files in it, frames, configs, weights and the folder instead of the download."""
    training = work / "training"
    shutil.copytree(tree, training, ignore=shutil.ignore_patterns("__pycache__"))
    installation = Installation(training)
    installation.carry_out(installation.plan(extension_files()))
    write_frames(work, frames)
    test_config = training / "config" / "test_config.yaml"
    test = yaml.safe_load(test_config.read_text(encoding="utf-8"))
    test.update(lmdb=False, dataset_json_folder=str(work), dataset_root_rgb=str(work), label_dict=LABELS)
    test_config.write_text(yaml.safe_dump(test), encoding="utf-8")
    detector = yaml.safe_load((training / "config" / "detector" / "clip.yaml").read_text(encoding="utf-8"))
    detector.update(workers=workers)
    (work / "host.yaml").write_text(yaml.safe_dump(detector), encoding="utf-8")
    detector.update(frame_sampling="host_sorted", backbone_config={"architecture": TOWER}, model_name="clip_gradcam")
    (work / "ours.yaml").write_text(yaml.safe_dump(detector), encoding="utf-8")
    write_tower(work)


def write_frames(work: Path, count: int) -> None:
    """Half of them real, half fake: blurred shapes with a sensor's noise, PNGs of about 110 KB."""
    random = np.random.default_rng(5)
    entries: dict[str, Any] = {}
    for label in LABELS:
        videos = {}
        for video in range(count // (2 * FRAMES)):
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            scene = cv2.resize(coarse, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC).astype(np.float32)
            paths = []
            for frame in range(FRAMES):
                image = np.clip(scene + random.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
                # The host puts `rgb_dir` before a path that does not begin with a dot.
                path = f"./frames/{label}/{label[-4:]}{video:03d}/{frame:03d}.png"
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(work / path), image)
                paths.append(path)
            videos[f"{label[-4:]}{video:03d}"] = {"label": label, "frames": paths}
        entries[label] = {"test": videos}
    (work / f"{NAME}.json").write_text(json.dumps({NAME: entries}), encoding="utf-8")


def write_tower(work: Path) -> None:
    """The folder that the host loads, and a checkpoint for both, which spreads the probabilities."""
    library("torchvision")  # transformers finds the host's, and wants it whole
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text))
    model.save_pretrained(work / HUB)
    weights = {f"backbone.{key}": value for key, value in model.vision_model.state_dict().items()}
    weights["head.weight"], weights["head.bias"] = 0.1 * torch.randn(2, TOWER["hidden_size"]), torch.zeros(2)
    torch.save(weights, work / "weights.pth")


def compare(work: Path, frames: int, rounds: int) -> list[float]:
    """Runs in turn, prints the table, and returns how far each metric is apart."""
    ours = ["training/test_with_gradcam.py", "--detector_path", "ours.yaml", "--device", "cpu", "--overwrite"]
    explaining = [*ours, "--gradcam_enabled", "--gradcam_method", "hirescam", "--gradcam_backward", "balanced",
                  "--gradcam_site", "residual", "--gradcam_layers", "encoder.layers.1"]  # fmt: skip
    commands = {
        "the host's test.py": ["training/test.py", "--detector_path", "host.yaml"],
        "ours, evaluation alone": [*ours, "--no_gradcam"],
        "ours, and maps of 50 mistakes, unchecked": [*explaining, "--check_maps", "off"],
        "ours, and maps of 50 mistakes, each checked": explaining,
        "ours, and maps of every frame": [*explaining, "--save_all_predictions"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    outputs = {}
    for _ in range(rounds):
        for name, command in commands.items():
            done = run(work, command)
            seconds[name].append(done.cpu_seconds)
            outputs[name] = done.output
    host = statistics.median(seconds["the host's test.py"])
    print(f"{frames} frames of {PIXELS} pixels, a tower of two blocks, CPU seconds in {rounds} rounds\n")
    print("| | CPU seconds | ÷ the host's, by the medians |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {', '.join(f'{one:.1f}' for one in taken)} | {statistics.median(taken) / host:.2f} |")
    found = json.loads((work / "out" / "metrics.json").read_text(encoding="utf-8"))[NAME]
    found["eer"] = found["eer_host"]  # by the host's formula
    said = {key: float(re.findall(rf"^{key}: ([\d.]+)", outputs["the host's test.py"], re.M)[0]) for key in METRICS}
    print("\n| metric | the host | ours | difference |\n|---|---|---|---|")
    for key in METRICS:
        print(f"| {key} | {said[key]!r} | {found[key]!r} | {abs(said[key] - found[key]):.1e} |")
    return [abs(said[key] - found[key]) for key in METRICS]


def run(work: Path, command: list[str]) -> Finished:
    """One process, from the folder above the tree, as the host wants it."""
    arguments = ["--test_dataset", NAME, "--weights_path", str(work / "weights.pth")]
    if "test.py" not in command[0]:
        arguments += ["--test_config", "training/config/test_config.yaml", "--gradcam_output_dir", str(work / "out")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", START, *command, *arguments],
        cwd=work, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(cpu, done.stdout + done.stderr)


if __name__ == "__main__":
    sys.exit(main())
