"""What heatmaps cost on a CUDA device, in one call of at most eight minutes. Prints Markdown.

    python benchmarks/gpu.py [--batches 8 32 128] [--rounds 10] [--minutes 8]

The detector is CLIP ViT-L/14 with random weights. All contenders run in turn, round after round, timed by the device's
own events; a ratio is to the plain forward pass of the same precision and batch, by the median and by the minimum of
the rounds. Whole runs of test_with_gradcam.py on generated frames come last. What there was no time for is named, as is
a library that is missing. `--device cpu --tiny` tries the script where there is no such device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import Bench, Contenders, plain, pytorch_grad_cam_run, torchcam_run
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from utils.gradcam_kit.base.files import TRAINING_FOLDER
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.explaining.one_pass import BatchRequest, Pending, explained_in

LARGE: dict[str, Any] = {"name_or_path": "openai/clip-vit-large-patch14", "pretrained": False}
TINY: dict[str, Any] = {
    "architecture": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "patch_size": 32, "image_size": 224,
    }
}  # fmt: skip
PRECISIONS = ("fp32", "tf32", "bf16")
PEERS_BATCH = 32  # theirs keep much more
ROW, ROUNDS_IN_A_ROW = 5, 3  # explanations in a row
RESERVED = 150  # seconds for the whole runs


def contenders(bench: Bench, peers: bool) -> Contenders:
    explain, data = bench.detector.explain, {"image": bench.image}
    balanced: dict[str, Any] = {"method": "hirescam", "site": "residual", "backward": "balanced"}
    runs: Contenders = {
        "plain forward": lambda: plain(bench),
        "ours, last block": partial(explain, data, layers=bench.names[:1], target="fake"),
        "ours, four layers": partial(explain, data, layers=bench.names, target="fake"),
        "ours, four layers, balanced": partial(
            explain, data, layers=bench.names, target="fake", completeness=False, **balanced
        ),
        "ours, sum of all blocks, balanced": partial(
            explain, data, layers=["sum"], target="fake", completeness=False, **balanced
        ),
    }
    for name, make in (("torchcam", torchcam_run), ("pytorch-grad-cam", pytorch_grad_cam_run)):
        if peers:
            try:
                runs[f"{name}, four layers"] = make(bench)
            except ImportError as error:
                print(f"{name} is left out: {error}")
    return runs


class Clock:
    """Which parts there is time for."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def allows(self, what: str, seconds: float = 0) -> bool:
        """Whether there is time for a part that takes so long; if not, it is named."""
        if self.left > seconds:
            return True
        print(f"\nleft out, for want of time: {what}", flush=True)
        return False


@contextlib.contextmanager
def precision_of(name: str, device: str) -> Iterator[None]:
    tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = tf32
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # from PyTorch 2.9 on
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    else:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    half: AbstractContextManager[Any] = contextlib.nullcontext()
    if name == "bf16":
        half = torch.autocast(device, dtype=torch.bfloat16)
    with half:
        yield


def in_precision(name: str, device: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """As a loop does it, batch by batch: autocast keeps no weights that it has cast from one call to the next."""

    def wrapped() -> Any:
        with precision_of(name, device):
            return run()

    return wrapped


def milliseconds(run: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


def peak(run: Callable[[], Any], device: str) -> str:
    if device == "cpu":
        return "–"
    torch.cuda.reset_peak_memory_stats()
    run()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"


def engine(detector: Any, blocks: tuple[int, ...], device: str, batches: list[int], rounds: int, clock: Clock) -> None:
    print("\n| precision | batch | | ms, median (min) | ÷ forward, median (min) | images/s | peak GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for precision in reversed(PRECISIONS) if device != "cpu" else ("bf16", "fp32"):
        for batch in batches:
            if not clock.allows(f"{precision}, batch {batch}", RESERVED):
                continue
            bench = Bench(detector, torch.randn(batch, 3, 224, 224, device=device), blocks)
            runs = contenders(bench, peers=batch <= PEERS_BATCH)
            times: dict[str, list[float]] = {name: [] for name in runs}
            runs = {name: in_precision(precision, device, run) for name, run in runs.items()}
            for _ in range(rounds + 2):  # the first two warm up and are dropped
                for name, run in runs.items():
                    times[name].append(milliseconds(run, device))
            measured = {name: times[name][2:] for name in runs}
            base = [statistics.median(measured["plain forward"]), min(measured["plain forward"])]
            for name, run in runs.items():
                median, least = statistics.median(measured[name]), min(measured[name])
                print(
                    f"| {precision} | {batch} | {name} | {median:.1f} ({least:.1f}) | {median / base[0]:.2f}"
                    f" ({least / base[1]:.2f}) | {1000 * batch / median:.0f} | {peak(run, device)} |",
                    flush=True,
                )


def in_a_row(
    detector: Any, blocks: tuple[int, ...], device: str, batches: list[int], rounds: int, clock: Clock
) -> None:
    """Explanations each waited for, as `explain` does it, and read when the next is under way, as runs do it."""
    print("\n| four layers, in a row | batch | ms each, waited for | ms each, one behind | kernels alone, ms |")
    print("|---|---|---|---|---|", flush=True)
    for precision in PRECISIONS if device != "cpu" else ("fp32",):
        for batch in batches:
            if not clock.allows(f"in a row, {precision}, batch {batch}", RESERVED):
                continue
            bench = Bench(detector, torch.randn(batch, 3, 224, 224, device=device), blocks)
            begin = in_precision(precision, device, handed_over(bench))
            begin().result()
            waited, behind = [], []
            for _ in range(min(rounds, ROUNDS_IN_A_ROW)):
                start = time.perf_counter()
                for _ in range(ROW):
                    begin().result()
                waited.append(1000 * (time.perf_counter() - start) / ROW)
                start, before = time.perf_counter(), begin()
                for _ in range(ROW - 1):
                    after = begin()
                    before.result()
                    before = after
                before.result()
                behind.append(1000 * (time.perf_counter() - start) / ROW)
            print(
                f"| {precision} | {batch} | {statistics.median(waited):.1f} | {statistics.median(behind):.1f} |"
                f" {kernels(begin, device)} |",
                flush=True,
            )


def kernels(run: Callable[[], Any], device: str) -> str:
    if device == "cpu":
        return "–"
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return f"{sum(one.device_time for one in found.events() if one.device_type == DeviceType.CUDA) / 1000:.1f}"


def forward_in_a_graph(detector: Any, batch: int) -> None:
    """What a CUDA graph brings to the plain forward pass of full batches."""
    bench = Bench(detector, torch.randn(batch, 3, 224, 224, device="cuda"), ())
    for precision in PRECISIONS:
        run = in_precision(precision, "cuda", lambda: plain(bench))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        eager, replayed = ([milliseconds(one, "cuda") for _ in range(ROW)] for one in (run, graph.replay))
        print(
            f"\nForward, {precision}, batch {batch}: {statistics.median(eager):.1f} ms, in a CUDA graph"
            f" {statistics.median(replayed):.1f} ms",
            flush=True,
        )


def handed_over(bench: Bench) -> Callable[[], Pending]:
    """Hands an explanation of the bench's images to the device, and waits for nothing."""
    asked = BatchRequest([Recipe("gradcam", bench.names)], "predicted", False)
    subject = bench.detector.as_subject()
    return partial(Pending, partial(explained_in, subject, {"image": bench.image}, asked))


def synchronisations(bench: Bench) -> None:
    """Where handing an explanation to the device waits for it, by the line of ours that asks."""
    run = handed_over(bench)
    run().result()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    found = Counter(
        f"{Path(one.filename).name}:{one.lineno}" for one in caught if "called a synchronizing" in str(one.message)
    )
    print(
        f"\nSynchronisations before an explanation is asked for its result: {sum(found.values())}",
        dict(found),
        flush=True,
    )


def whole_runs(backbone: dict[str, Any], device: str, videos: int, clock: Clock) -> None:
    """Frames per second of test_with_gradcam.py, without its start: between the first and the last batch."""
    with tempfile.TemporaryDirectory() as folder:
        data, root = Path(folder) / "data", TRAINING_FOLDER
        made = [sys.executable, str(root / "examples" / "make_demo_data.py"), "--output", str(data), "--seed", "7"]
        subprocess.run([*made, "--split", "test", "--videos", str(videos)], check=True, stdout=subprocess.DEVNULL)
        config = yaml.safe_load((root / "config" / "detector" / "clip_gradcam_demo.yaml").read_text(encoding="utf-8"))
        config.update(
            weights_path=None, backbone_config=backbone, resolution=224, test_batchSize=64, gradcam_enabled=False
        )
        detector, test = Path(folder) / "detector.yaml", Path(folder) / "test.yaml"
        detector.write_text(yaml.safe_dump(config), encoding="utf-8")
        paths = yaml.safe_load((root / "config" / "test_config.yaml").read_text(encoding="utf-8"))
        paths.update(dataset_json_folder=str(data / "dataset_json"), dataset_root_rgb=str(data))
        test.write_text(yaml.safe_dump(paths), encoding="utf-8")
        print(
            "\n| whole run, start-up included | seconds | frames | of these explained | frames/s |"
            "\n|---|---|---|---|---|"
        )
        for name, flags in (
            ("evaluation alone", []),
            ("and the maps of 50 mistakes", ["--gradcam_enabled"]),
            ("every frame's map", ["--gradcam_enabled", "--save_all_predictions"]),
        ):
            out = Path(folder) / name.replace(" ", "_")
            command = [
                sys.executable, str(root / "test_with_gradcam.py"), "--detector_path", str(detector), "--test_dataset",
                "demo", "--random_weights", "--device", device, "--gradcam_output_dir", str(out), "--workers", "12",
                "--test_config", str(test), "--calibration_images", "0", "--gradcam_layers", "sum", "--gradcam_method",
                "hirescam", "--gradcam_backward", "balanced", *flags,
            ]  # fmt: skip
            if not clock.allows(f"whole run, {name}"):
                continue
            start = time.monotonic()
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=clock.left)
            except subprocess.TimeoutExpired:
                print(f"| {name} | more than {time.monotonic() - start:.0f}, ended | | | |", flush=True)
                continue
            took = time.monotonic() - start
            if done.returncode:
                print(f"| {name} | failed: {done.stderr.strip().splitlines()[-1:]} | | |", flush=True)
                continue
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["demo"]
            explained = len(list(out.glob("demo/sample*")))
            frames = metrics["frames"]
            print(f"| {name} | {took:.1f} | {frames} | {explained} | {frames / took:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="a small tower, to try the script")
    parser.add_argument("--videos", type=int, default=24, help="of each forgery in the whole runs")
    parser.add_argument("--minutes", type=float, default=8, help="that all of it may take")
    arguments = parser.parse_args()
    clock = Clock(arguments.minutes)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("missing: PyTorch finds no CUDA device here")
        return
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, {'a tiny tower' if arguments.tiny else 'CLIP ViT-L/14, random weights'}")
    torch.manual_seed(0)
    backbone, blocks = (TINY, (3, 2, 1, 0)) if arguments.tiny else (LARGE, (23, 20, 15, 10))
    detector = CLIPDetectorWithGradCAM({"loss_func": "cross_entropy", "backbone_config": backbone})
    detector.eval().to(arguments.device)
    measured = detector, blocks, arguments.device, arguments.batches, arguments.rounds, clock
    engine(*measured)
    in_a_row(*measured)
    if arguments.device == "cuda":
        forward_in_a_graph(detector, min(arguments.batches))
        synchronisations(Bench(detector, torch.randn(8, 3, 224, 224, device="cuda"), blocks))
    whole_runs(backbone, arguments.device, arguments.videos, clock)


if __name__ == "__main__":
    main()
