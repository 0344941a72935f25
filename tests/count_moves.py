"""How far one image travels through the code: from the run's Explainer to its folder on disk.

    python -m tests.count_moves [--list]

Counts the project's files and rooms that are called on the way, and the moves: how often the next call is into another
file (another room) than the one before. Run by hand; a long way is a hint where modules are cut wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType

import torch

from tests.helpers.datasets import make_data_tree
from tests.helpers.detectors import PIXELS, tiny_detector
from tests.helpers.paths import ROOT
from utils.gradcam_kit.data.frames import frame_loader
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.run.explainer import Explainer
from utils.gradcam_kit.run.predictions import Resume
from utils.gradcam_kit.settings.config import run_settings
from utils.gradcam_kit.store.database import RunDatabase
from utils.gradcam_kit.store.sample_folder import RenderedSample, write_sample
from utils.gradcam_kit.store.sample_writer import SampleWriter, Spans


class DirectWriter(SampleWriter):
    """Writes at once, so that the calls come in one order."""

    def write(self, drawn: RenderedSample, spans: Spans) -> None:
        self._put(drawn.sample, write_sample(self._folder / f"sample{drawn.sample.index}", drawn))


def called_files(folder: Path) -> list[str]:
    """The files of the project in the order of their calls while one frame is predicted, explained and written."""
    weights = folder / "tiny.pth"
    torch.save(tiny_detector().state_dict(), weights)
    tree = make_data_tree(folder / "data", weights)
    settings = run_settings(tree.detector_yaml, tree.test_yaml, {"gradcam_enabled": True})
    detector = load_detector(settings.detector, find_device("cpu"))
    frames = read_dataset("toy", settings.data)
    batch = next(iter(frame_loader(frames[:1], PIXELS, 1, 0)))
    files: list[str] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith((str(ROOT / "utils"), str(ROOT / "detectors"))):
            files.append(os.path.relpath(path, ROOT))

    for name in ("warm-up", "counted"):
        files.clear()
        database = RunDatabase(folder / f"{name}.sqlite", writes=True, new=True)
        with database, DirectWriter(database, "", folder) as writer:
            explainer = Explainer(detector, Resume(frames, [], ""), writer, detector.predict)
            sys.setprofile(record)
            explainer.predict_and_explain(batch)
            sys.setprofile(None)
        (folder / "sample0").rename(folder / name)
    return files


def without_repeats(places: list[str]) -> list[str]:
    """Successive equal places as one."""
    return [place for i, place in enumerate(places) if i == 0 or place != places[i - 1]]


def room_of(file: str) -> str:
    """`utils/gradcam_kit/run/explainer.py` → `gradcam_kit/run`."""
    parts = Path(file).parts
    return parts[0] if parts[0] == "detectors" else "/".join(parts[1:3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="also print the way, file by file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = called_files(Path(folder))
    way, rooms = without_repeats(files), without_repeats([room_of(file) for file in files])
    if arguments.list:
        print("\n".join(way))
    print(f"{len(files)} calls; {len(set(way))} files, {len(way) - 1} moves between files;"
          f" {len(set(rooms))} rooms, {len(rooms) - 1} moves between rooms")  # fmt: skip


if __name__ == "__main__":
    main()
