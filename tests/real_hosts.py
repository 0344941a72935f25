"""Every detector of a real host tree, evaluated and explained with random weights, as one table.

    python tests/real_hosts.py TREE [DETECTOR ...] [--keep FOLDER]
    python tests/real_hosts.py TREE --programs [--keep FOLDER]

TREE: the training folder of DF40, DeepfakeBench or Effort; it is copied, and only the copy is touched. DETECTOR: names
of YAML files in its config/detector, all of them if none is given. Run by hand, a few minutes, in the environment of
`tests/host_environment.txt`, in which the hosts' own train.py and test.py run too; what differs from it is printed
first. Prints a Markdown table; exit code 1 if a detector was not explained. --programs runs the benchmark's own train.py
and test.py to their ends instead, with heatmaps off and on (`tests/host_programs.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "tests" / "host_environment.txt"
sys.path.insert(0, str(ROOT))

from tests import host_programs  # noqa: E402  found through the line above
from tools.install_into_host import Installation, extension_files  # noqa: E402  found through the line above

PIXELS = 256
IMAGES, CLIPS = "Celeb-DF-v2", "Celeb-DF-v1"
# What some YAML files of clip detectors say, and has to be changed before anything can start: their model_name.
RENAMED = {"ftcn": "ftcn", "timetransformer": "timesformer"}
LABELS = {"CelebDFv2_real": 0, "CelebDFv2_fake": 1}


class Outcome(NamedTuple):
    """One row of the table."""

    detector: str
    layer: str
    evaluated: bool
    explained: bool
    seconds: float
    reason: str
    video: bool

    def row(self) -> str:
        marks = ["yes" if mark else "no" for mark in (self.evaluated, self.explained)]
        return f"| {self.detector} | {self.layer} | {' | '.join(marks)} | {self.seconds:.0f} | {self.reason} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", type=Path)
    parser.add_argument("detectors", nargs="*")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it there")
    parser.add_argument("--programs", action="store_true", help="run the benchmark's own train.py and test.py")
    args = parser.parse_args()
    work = args.keep or Path(tempfile.mkdtemp(prefix="real_hosts_"))
    training = work / "training"
    shutil.copytree(args.tree, training, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    yamls = [path for path in sorted((training / "config" / "detector").glob("*.yaml")) if "gradcam" not in path.name]
    installation = Installation(training)
    installation.carry_out(installation.plan(extension_files()))
    print(environment())
    if args.programs:
        print("| YAML | weights after train.py | logged by log_gradcam | test.py | test_with_gradcam.py |")
        print("|---|---|---|---|---|", *host_programs.check(training), sep="\n")
        return 0
    write_data(work)
    print("| detector | default layer | evaluated | explained | seconds | reason |\n|---|---|---|---|---|---|")
    outcomes = []
    for path in yamls:
        if not args.detectors or path.stem in args.detectors:
            outcomes.append(tried(training, path))
            print(outcomes[-1].row(), flush=True)
    if not args.keep:
        shutil.rmtree(work)
    return int(not all(outcome.explained for outcome in outcomes))


def environment() -> str:
    """The Python and the packages that run here, and where they are not those of `tests/host_environment.txt`."""
    differing = []
    pinned = re.findall(r"^([\w-]+)==(\S+)", ENVIRONMENT.read_text(encoding="utf-8"), re.MULTILINE)
    for name, wanted in pinned:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != wanted:
            differing.append(f"{name} {found} (there: {wanted})")
    named = f"Python {platform.python_version()}, packages of tests/{ENVIRONMENT.name}"
    return named + (f", but for {', '.join(differing)}" if differing else "") + "\n"


def write_data(work: Path) -> None:
    """Two frames each of two real and two fake videos, and one clip of a real and of a fake one."""
    (work / "json").mkdir(exist_ok=True)
    for dataset, videos, frames in ((IMAGES, ("id0", "id1"), 2), (CLIPS, ("id2",), 32)):
        entries = written(work, videos, frames)
        (work / "json" / f"{dataset}.json").write_text(json.dumps({dataset: entries}))
    config = {"dataset_json_folder": str(work / "json"), "dataset_root_rgb": str(work / "data"), "label_dict": LABELS,
              "lmdb": False, "ddp": False}  # fmt: skip
    (work / "test_config.yaml").write_text(yaml.safe_dump(config))


def written(work: Path, names: Sequence[str], count: int) -> dict[str, Any]:
    """A real and a fake video of each name, with so many frames, as the dataset's JSON has them."""
    random = np.random.default_rng(5)
    entries: dict[str, Any] = {}
    for label, number in LABELS.items():
        videos = {}
        for video in names:
            frames = []
            for frame in range(count):
                name = f"{label}/frames/{video}/{frame:03d}.png"
                coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                image = cv2.resize(coarse, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
                mask = np.zeros((PIXELS, PIXELS), np.uint8)
                mask[80:180, 60:200] = 255 * number
                landmarks = random.integers(40, 216, (81, 2)).astype(np.int64)
                for part, content in (("frames", image), ("masks", mask)):
                    file = work / "data" / name.replace("frames", part)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(file), content)
                file = work / "data" / name.replace("frames", "landmarks").replace(".png", ".npy")
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, landmarks)
                frames.append(name)
            videos[video] = {"label": label, "frames": frames}
        entries[label] = {"test": videos}
    return entries


def tried(training: Path, path: Path) -> Outcome:
    """One detector: all frames explained, or else evaluated alone."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    video = bool(config.get("video_mode"))
    if path.stem in RENAMED:
        path.write_text(yaml.safe_dump({**config, "model_name": RENAMED[path.stem]}))
    data = (
        ("--test_dataset", CLIPS, "--clips_per_video", "1", "--batch_size", "1")
        if video
        else ("--test_dataset", IMAGES)
    )
    out = training.parent / "out" / path.stem
    start = time.perf_counter()
    maps = "--gradcam_enabled", "--gradcam_signed", "--save_all_predictions"
    explained = started(training, path, out, *data, *maps)
    seconds = time.perf_counter() - start
    if explained.returncode == 0:
        manifest = json.loads((out / "manifest.json").read_text())
        (counts,) = manifest["heatmaps"].values()
        layers = list(counts["empty_maps"])
        empty = sum(counts["empty_maps"].values())
        notes = f"{empty} of {counts['heatmaps']} maps are empty" if empty else ""
        return Outcome(path.stem, f"`{layers[0]}`", True, counts["heatmaps"] > 0, seconds, notes, video)
    reason = (explained.stderr.strip().splitlines() or ["no word"])[-1]
    plain = started(training, path, out, *data)
    return Outcome(path.stem, "", plain.returncode == 0, False, seconds, reason, video)


def started(training: Path, path: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """test_with_gradcam.py in the copy, from the folder above, as the hosts' own paths want it; `lib/` is found too."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    link = training.parent / "lib"  # one of the hosts' detectors opens `lib/...`, the others `./training/lib/...`
    if not link.exists():
        link.symlink_to(training / "lib")
    return subprocess.run(
        [sys.executable, str(training / "test_with_gradcam.py"), "--detector_path", str(path),
         "--test_config", str(training.parent / "test_config.yaml"), "--random_weights",
         "--device", "cpu", "--workers", "0", "--gradcam_output_dir", str(out), "--overwrite", *flags],
        cwd=training.parent, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
