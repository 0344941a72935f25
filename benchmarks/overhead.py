"""What Python adds to an explanation: ours beside torchcam, on a tower that is so narrow that nothing else counts.

    python benchmarks/overhead.py [--rounds 60]

A CLIP tower of 24 blocks of width 32, two images, one thread, of which the processor's time is measured. All contenders
run in turn, round after round, in one process. Operators are those that PyTorch's dispatcher is given, of the forward
and the backward pass. Takes less than a minute. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import Bench, Contenders, plain, torchcam_run
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

ARCHITECTURE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 24, "num_attention_heads": 4, "patch_size": 16,
    "image_size": 64,
}  # fmt: skip
BLOCKS = (23, 20, 15, 10)
BATCH = 2
PEER = "torchcam, four layers"
WARM = 3  # rounds that are dropped


class Operators(TorchDispatchMode):
    """Counts what runs inside it."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(run: Callable[[], Any]) -> int:
    """How many operators `run` gives to the dispatcher."""
    with Operators() as counted:
        run()
    return counted.count


def narrow_bench() -> Bench:
    torch.manual_seed(0)
    config = {"loss_func": "cross_entropy", "backbone_config": {"architecture": ARCHITECTURE}}
    side = ARCHITECTURE["image_size"]
    detector = CLIPDetectorWithGradCAM(config).eval()
    detector.weights_at_first = None  # as of a detector that was trained: nobody looks whether it was
    return Bench(detector, torch.randn(BATCH, 3, side, side), BLOCKS)


def contenders(bench: Bench) -> Contenders:
    explain = partial(bench.detector.explain, {"image": bench.image}, target="fake")
    balanced = {"method": "hirescam", "site": "residual", "backward": "balanced", "completeness": False}
    return {
        "plain forward": lambda: plain(bench),
        PEER: torchcam_run(bench),
        "ours, four layers": partial(explain, layers=bench.names),
        "ours, four layers, balanced": partial(explain, layers=bench.names, **balanced),
        "ours, last block alone": partial(explain, layers=bench.names[:1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    runs = contenders(narrow_bench())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + WARM):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            times[name].append(1000 * (time.thread_time() - start))
    found = {
        name: (min(some[WARM:]), statistics.median(some[WARM:]), operators(runs[name])) for name, some in times.items()
    }
    print(f"{len(found)} contenders in turn, {rounds} rounds, one thread; ÷ is by torchcam's of the same column\n")
    print("| | ms, fastest | ÷ | ms, median | ÷ | operators | ÷ |\n|---|---|---|---|---|---|---|")
    for name, (fastest, median, count) in found.items():
        by = [one / of_peer for one, of_peer in zip((fastest, median, count), found[PEER], strict=True)]
        print(f"| {name} | {fastest:.2f} | {by[0]:.2f} | {median:.2f} | {by[1]:.2f} | {count} | {by[2]:.2f} |")


if __name__ == "__main__":
    main()
