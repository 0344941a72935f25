"""What a run leaves on disk: pictures, metadata, tables, manifest. Whatever stands under its final name is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import new_folder
from utils.results.grey_maps import GREY_MAPS, raw_arrays, write_grey_maps
from utils.results.overlays import LayerPicture, comparison, encode, original_box, panels
from utils.text import printable

RANDOM_WEIGHTS = "random"
SIGNED_TARGET = "margin, signed (red: fake, blue: real)"
RANDOM_WEIGHTS_WARNING = "random weights: this detector was never trained, its scores and maps mean nothing"


@dataclass(frozen=True)
class Sample:
    """All that is written of one explained picture. `label` None: not known."""

    index: int
    path: str
    dataset: str
    forgery: str
    video: str
    label: int | None
    logits: tuple[float, float]
    prob_fake: float
    target: str
    method: str
    site: str
    weights: str
    picture: np.ndarray  # (H, W, 3) uint8 RGB, as the detector saw it
    layers: list[LayerPicture]

    @property
    def predicted(self) -> int:
        return int(self.prob_fake > 0.5)

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return self.prob_fake if self.predicted else 1.0 - self.prob_fake


# -------------------------------------------------------------------------------------------------------- one sample


def _label_text(label: int | None) -> str:
    return "unknown" if label is None else f"{label} ({('Real', 'Fake')[label]})"


def metadata_text(sample: Sample) -> str:
    """`sample<i>_metadata.txt`: five lines in fixed form, then more."""
    correct = "unknown" if sample.label is None else str(sample.predicted == sample.label)
    lines = [
        f"True Label: {_label_text(sample.label)}",
        f"Predicted Label: {_label_text(sample.predicted)}",
        f"Confidence: {sample.confidence:.4f}",
        f"Correct: {correct}",
        f"Dataset: {printable(sample.dataset)}",
        f"Image: {printable(sample.path)}",
        f"Forgery: {printable(sample.forgery)}",
        f"Video: {printable(sample.video)}",
        f"Logits: real {sample.logits[0]:.6g}, fake {sample.logits[1]:.6g}",
        f"Probability of fake: {sample.prob_fake:.6g}",
        f"Target: {sample.target}",
        f"Method: {sample.method}",
        f"Site: {sample.site}",
        f"Weights: {printable(sample.weights)}",
    ]
    for layer in sample.layers:
        lines.append(f"Layer {layer.name}: {_state_text(layer)}")
    return "\n".join(lines) + "\n"


def _state_text(layer: LayerPicture) -> str:
    if layer.drawn_empty:
        return "empty map: no patch speaks for the target"
    if layer.empty:
        return "no patch speaks for the target, what is drawn speaks against it"
    return f"raw maximum {layer.raw_maximum:.6g}"


def metadata_json(sample: Sample) -> dict[str, Any]:
    """`sample<i>.json`: the same for machines."""
    return {
        "index": sample.index,
        "path": sample.path,
        "dataset": sample.dataset,
        "forgery": sample.forgery,
        "video": sample.video,
        "label": sample.label,
        "predicted": sample.predicted,
        "correct": None if sample.label is None else sample.predicted == sample.label,
        "confidence": sample.confidence,
        "prob_fake": sample.prob_fake,
        "logit_real": sample.logits[0],
        "logit_fake": sample.logits[1],
        "target": sample.target,
        "method": sample.method,
        "site": sample.site,
        "weights": sample.weights,
        "layers": [
            {
                "name": layer.name,
                "raw_minimum": float(layer.raw.min()),
                "raw_maximum": layer.raw_maximum,
                "signed_extreme": float(np.abs(layer.signed).max()),
                "empty": layer.empty,
                "drawn_empty": layer.drawn_empty,
            }
            for layer in sample.layers
        ],
        "original": original_box(sample.picture.shape[:2], 1 + len(sample.layers), bool(_warning(sample)))._asdict(),
    }


def comparison_title(sample: Sample) -> str:
    """One line: what it is, what the detector said, how sure it was."""
    truth = "" if sample.label is None else f"true label: {('real', 'fake')[sample.label]}   "
    verdict = ("real", "fake")[sample.predicted]
    mark = "" if sample.label is None else (" ✓" if sample.predicted == sample.label else " ✗")
    return f"{truth}prediction: {verdict}{mark}   confidence: {sample.confidence:.3f}   target: {sample.target}"


def comparison_picture(sample: Sample) -> np.ndarray:
    """Original and every layer side by side, (H', W', 3) uint8 RGB."""
    return comparison(panels(sample.picture, sample.layers), comparison_title(sample), _warning(sample))


def _warning(sample: Sample) -> str:
    return RANDOM_WEIGHTS_WARNING if sample.weights == RANDOM_WEIGHTS else ""


def write_sample(folder: Path, sample: Sample, image_format: str = "png", save_raw: bool = False) -> Path:
    """Write one sample's pictures and metadata as `folder`, which appears complete or not at all; returns it.

    An earlier run's sample there is replaced; InputError where `folder` is anything else.
    `save_raw` adds the maps as the method gave them, before any normalising: `raw_sample<i>.npz`.
    """
    if folder.is_symlink() or (folder.exists() and not any(folder.glob("sample*.*"))):
        raise InputError(f"{folder}: is there and is no folder of a sample: move it, or give another output folder")
    partial = folder.with_name(f".{folder.name}.partial")
    new_folder(partial)
    i = sample.index
    for layer in sample.layers:
        (partial / f"gradcam_{layer.name}_sample{i}.{image_format}").write_bytes(encode(layer.overlay, image_format))
    write_grey_maps(partial / GREY_MAPS, sample.layers)
    if save_raw:
        np.savez_compressed(partial / f"raw_sample{i}.npz", **raw_arrays(sample.layers))  # type: ignore[arg-type]  # numpy's stub takes them for its own flag
    (partial / f"gradcam_comparison.{image_format}").write_bytes(encode(comparison_picture(sample), image_format))
    (partial / f"sample{i}_metadata.txt").write_text(metadata_text(sample), encoding="utf-8", errors="backslashreplace")
    details = {**metadata_json(sample), "files": _sizes(partial)}
    (partial / f"sample{i}.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old.partial")
    if folder.exists():
        new_folder(old)
        folder.replace(old)  # a folder half removed must not stand under the final name
    partial.replace(folder)
    if old.exists():
        shutil.rmtree(old)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    """File below `folder` → bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def read_whole_sample(folder: Path, index: int) -> dict[str, Any] | None:
    """The JSON of a sample of which every file is there in full, else None.

    A folder appears complete, but after a crash of the machine its files may have lost their ends.
    """
    try:
        details = json.loads((folder / f"sample{index}.json").read_text(encoding="utf-8"))
        files = {**details["files"], f"sample{index}.json": (folder / f"sample{index}.json").stat().st_size}
        return details if _sizes(folder) == files else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class SampleWriter:
    """Draws and writes samples in a few threads. A slow disk slows the run, it never fills the memory.

    An exception in a thread reaches the caller at the next `write`, or at the end. What is queued is still written when
    the run is interrupted, and given up when it fails.
    """

    def __init__(self, image_format: str = "png", threads: int | None = None, save_raw: bool = False) -> None:
        self.written = 0
        self._image_format = image_format
        self._save_raw = save_raw
        threads = threads or min(4, os.cpu_count() or 1)
        self._waiting_at_most = 4 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="draw")
        self._waiting: deque[Future[Path]] = deque()

    def write(self, folder: Path, sample: Sample) -> None:
        """Queue one sample; waits while too many are queued."""
        while len(self._waiting) >= self._waiting_at_most:
            self._finish_one()
        self._waiting.append(self._pool.submit(write_sample, folder, sample, self._image_format, self._save_raw))

    def _finish_one(self) -> None:
        self._waiting.popleft().result()
        self.written += 1

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting and (error is None or isinstance(error, KeyboardInterrupt)):
                self._finish_one()
        finally:
            for future in self._waiting:
                future.cancel()
            self._pool.shutdown(wait=True)


# ------------------------------------------------------------------------------------------------------ whole files
