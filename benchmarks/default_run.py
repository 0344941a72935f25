"""What a run's heatmaps cost beside a plain evaluation: seconds, and forward and backward passes of one image.

    python examples/make_demo_data.py --output data/pipeline --seed 7 --split test --videos 17
    python benchmarks/default_run.py --data data/pipeline [--frames 240 800]

The embedded detector evaluates so many frames and explains 50 of them: as named and unchecked, as a run does it by
default, with its trial and a verdict on each map, and with `--check_maps on`. A pass is counted block by block, so that
one that runs two thirds of the blocks counts two thirds. Seconds are those of the processor, of all threads, between
the first prediction and the end. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pipeline import ROOT, TRAINED, Setting
from test_with_gradcam import main as test_with_gradcam
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.run import evaluation

EXPLAINED = 50
SOME = ("--gradcam_enabled", "--save_all_predictions", "--gradcam_samples", str(EXPLAINED))
CHOSEN = ("--gradcam_method", "auto", "--gradcam_layers", "auto")
RUNS = {
    "plain evaluation": ("--no_gradcam",),
    f"{EXPLAINED} maps as named, unchecked": (*SOME, "--calibration_images", "0", "--check_maps", "off"),
    f"{EXPLAINED} maps, named and judged": (*SOME, "--gradcam_method", "hirescam", "--gradcam_layers", "-1"),
    f"{EXPLAINED} maps, chosen": (*SOME, *CHOSEN),
    f"{EXPLAINED} maps, chosen and each checked": (*SOME, *CHOSEN, "--check_maps", "on"),
}  # fmt: skip


class Cost(NamedTuple):
    """Of one run: passes of one image, and processor seconds."""

    forward: float
    backward: int
    seconds: float


class Counter:
    """Counts the images that each block of a detector sees, and those that are differentiated."""

    def __init__(self, load: Callable[..., LoadedDetector]) -> None:
        self._load, self._grad = load, torch.autograd.grad
        self.blocks, self.forward, self.backward, self.start = 1, 0, 0, 0.0

    def load(self, *given: Any, **named: Any) -> LoadedDetector:
        detector = self._load(*given, **named)
        tower = detector.as_subject().tower
        self.blocks = len(tower.blocks)
        for name in tower.blocks:
            tower.named[name].register_forward_hook(self._count)
        self.start = time.process_time()
        return detector

    def _count(self, module: Any, inputs: Any, output: Any) -> None:
        if "forward" not in vars(module):  # a block that is passed over
            self.forward += len(inputs[0])

    def grad(self, outputs: Any, *given: Any, **named: Any) -> Any:
        self.backward += len(outputs)
        return self._grad(outputs, *given, **named)

    def cost(self) -> Cost:
        return Cost(self.forward / self.blocks, self.backward, time.process_time() - self.start)


def cost_of(setting: Setting, frames: int, flags: tuple[str, ...]) -> Cost:
    """One run in this process, which is quiet."""
    counter = Counter(evaluation.load_detector)
    out = Path(tempfile.mkdtemp(dir=setting.folder)) / "out"  # a choice beside it would not be made again
    usual = evaluation.load_detector
    evaluation.load_detector, torch.autograd.grad = counter.load, counter.grad
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = test_with_gradcam([*setting.flags(frames), "--gradcam_output_dir", str(out), *flags])
    finally:
        evaluation.load_detector, torch.autograd.grad = usual, counter._grad
    if code:
        raise SystemExit(said.getvalue())
    return counter.cost()


def write_configs(setting: Setting) -> None:
    """The embedded detector's, on data of any number of frames."""
    detector = yaml.safe_load(TRAINED.read_text(encoding="utf-8"))
    detector.update(workers=0, weights_path=str(ROOT / detector["weights_path"]))
    (setting.folder / "detector.yaml").write_text(yaml.safe_dump(detector), encoding="utf-8")
    kinds = (setting.data / "dataset_json").glob("*.json")
    labels = {"demo_Real": 0, **{f"{kind.stem}_Fake": 1 for kind in kinds}}
    test = {"dataset_json_folder": str(setting.folder), "dataset_root_rgb": str(setting.data), "label_dict": labels}
    (setting.folder / "test.yaml").write_text(yaml.safe_dump(test), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, nargs="+", default=[240, 800])
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as name:
            setting = Setting(arguments.data.resolve(), Path(name), arguments.batch, "cpu")
            write_configs(setting)
            costs = {run: cost_of(setting, frames, flags) for run, flags in RUNS.items()}
        print(f"\n| {frames} frames | forward passes | backward passes | both ÷ plain | seconds | ÷ plain |")
        print("|---|---|---|---|---|---|")
        plain = costs["plain evaluation"]
        for run, cost in costs.items():
            passes = (cost.forward + cost.backward) / plain.forward
            print(
                f"| {run} | {cost.forward:.0f} | {cost.backward} | {passes:.2f} | {cost.seconds:.1f} |"
                f" {cost.seconds / plain.seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
