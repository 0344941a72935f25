"""Reading of a run: manifest, metrics, predictions, samples and maps. The run may have stopped half-way."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..base.errors import InputError
from ..base.typed import Misfit
from ..data.frame_paths import hash_of, read_bytes
from ..data.gaps import ForgeryGaps, read_gaps
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import LayerImage, layer_images
from ..engine.maps import Canvas, LayerMaps
from ..judge.check import ARTEFACT
from .database import DatabaseRow, RunDatabase, database_of
from .manifest import Manifest
from .run_folder import read_manifest
from .sample import SIGNED_TARGET, Sample
from .sample_folder import GREY_MAPS
from .tables import GAPS, metrics_of, prediction_rows, unreadable_rows

MOST_PIXELS = 8192  # that a map may span per side
OUTCOMES = ("TP", "FP", "TN", "FN")  # positive means fake


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOnDisk:
    """One dataset of a run. `label` and `prob_fake` (N,) hold every readable frame; `metrics` None: not yet known."""

    name: str
    folder: Path
    metrics: dict[str, Any] | None
    complete: bool
    frames: int  # in the dataset, after sampling
    label: np.ndarray
    prob_fake: np.ndarray
    samples: list[Sample]
    explained: int  # number of samples; `samples` may hold fewer
    unreadable: int
    gaps: list[ForgeryGaps]  # forgeries with missing frames
    video_frames: list[int]  # number of readable frames per video


class RunOnDisk(NamedTuple):
    """A run. `finished` is False if it stopped half-way or is still running."""

    folder: Path
    finished: bool
    manifest: Manifest
    datasets: list[DatasetOnDisk]

    @property
    def layers(self) -> list[str]:
        """Names of the explained layers, in the run's order."""
        names = (layer.name for data in self.datasets for sample in data.samples for layer in sample.layers)
        return list(dict.fromkeys(names))


def reader(folder: Path) -> RunDatabase:
    """Open the database of a run's folder for reading. Raises InputError if there is none."""
    path = database_of(folder)
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no run (no {path.name}); give the --gradcam_output_dir of a run. For a run of a version"
            " without this file, use that version"
        )
    return _open(path, path.stat().st_ino, threading.get_ident())


@functools.lru_cache(maxsize=64)
def _open(path: Path, inode: int, thread: int) -> RunDatabase:
    return RunDatabase(path, writes=False)


def read_run(folder: Path, samples_at_most: int = sys.maxsize) -> RunOnDisk:
    """Read a run. If a dataset has more than `samples_at_most` samples, read every k-th. Raises InputError."""
    database = reader(folder)
    database.skipped = 0
    manifest, metrics = read_manifest(database), metrics_of(database)
    for name in manifest.datasets:
        if (folder / name).is_symlink():
            raise InputError(
                f"{folder / name}: is a symbolic link, which is not followed: replace it by the dataset's folder"
            )
    datasets = [
        _read_dataset(database, folder / name, metrics.get(name), record.frames, samples_at_most)
        for name, record in manifest.datasets.items()
    ]
    if changed := database.skipped:
        raise InputError(
            f"{database.path}: {changed} rows were changed since the run wrote them; run its command with --resume"
            " to restore them"
        )
    return RunOnDisk(folder, manifest.finished is not None, manifest, datasets)


def _read_dataset(
    database: RunDatabase, folder: Path, metrics: dict[str, Any] | None, frames: int, samples_at_most: int
) -> DatasetOnDisk:
    label, prob_fake, videos = array("q"), array("d"), Counter[tuple[str, str]]()
    for row in prediction_rows(database, folder.name):  # not as a list: there may be millions
        label.append(row["label"])
        prob_fake.append(row["prob_fake"])
        videos[row["forgery"], row["video"]] += 1
    explained = "WHERE dataset = ? AND lost = ''", folder.name
    count = database.count("sample", *explained)
    shown = itertools.islice(database.rows("sample", *explained), 0, None, -(-count // samples_at_most) or 1)
    unreadable = sum(1 for _ in unreadable_rows(database, folder.name))
    return DatasetOnDisk(
        name=folder.name,
        folder=folder,
        metrics=metrics,
        complete=len(label) + unreadable == frames,
        frames=frames,
        label=np.array(label),
        prob_fake=np.array(prob_fake),
        samples=[_read_sample(row, database, folder) for row in shown],
        explained=count,
        unreadable=unreadable,
        gaps=read_gaps(folder / GAPS) if (folder / GAPS).is_file() else [],
        video_frames=list(videos.values()),
    )


def _read_sample(row: DatabaseRow, database: RunDatabase, dataset_folder: Path) -> Sample:
    _, index, facts, files, *_ = row
    try:
        sample = Sample.from_json(json.loads(facts))
    except (Misfit, ValueError) as error:
        raise InputError(f"{database.path}: sample {index} of {dataset_folder.name} is damaged ({error})") from error
    folder = dataset_folder / f"sample{index}"
    comparison = next((name for name in json.loads(files) if name.startswith("gradcam_comparison.")), "")
    if not (comparison and (folder / comparison).is_file() and (folder / GREY_MAPS).is_dir()):
        comparison = ""
    gone = not comparison and hash_of(sample.path) not in {sample.image_hash} - {""}
    lost = "its images were not saved, and the dataset's file is gone or has changed" if gone else ""
    if sample.frames and not comparison:
        lost = "pictures of a clip are only in files, which were not saved"
    return replace(sample, folder=folder, comparison=comparison, lost=lost)


def frame_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset's predictions.csv. `folder`: the dataset's folder inside the run's."""
    return prediction_rows(reader(folder.parent), folder.name)


class StoredMap(NamedTuple):
    """A layer's maps, float32 (h, w): raw, and signed (before ReLU). `spanned`: pixels, see `engine.maps.Canvas`."""

    raw: np.ndarray
    signed: np.ndarray
    spanned: tuple[int, int]


def stored_maps(sample: Sample) -> dict[str, StoredMap]:
    """Return the saved maps of a sample, by layer. Raises InputError for a damaged one."""
    database = reader(sample.folder.parent.parent)
    found = {}
    for _, _, layer, rows, columns, high, wide, raw, signed, _ in database.rows(
        "map", "WHERE dataset = ? AND idx = ?", sample.dataset, sample.index
    ):
        try:
            maps = [np.frombuffer(data, np.float32).reshape(rows, columns) for data in (raw, signed)]
            if not (0 < high <= MOST_PIXELS and 0 < wide <= MOST_PIXELS and np.isfinite(maps).all()):
                raise ValueError("its size or a value is invalid")
        except (ValueError, TypeError) as error:
            where = f"{database.path}: the map of {layer} of sample {sample.index} of {sample.dataset}"
            raise InputError(f"{where} is damaged ({error}); run again") from error
        found[layer] = StoredMap(maps[0], maps[1], (high, wide))
    return found


def sample_maps(sample: Sample, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return raw maps, float32 (h, w), of the named layers, without empty or lost ones; for a clip, nothing."""
    maps = {} if sample.frames else stored_maps(sample)
    shown = [layer.name for layer in sample.layers if layer.name in layers and not layer.empty]
    return {name: maps[name].raw for name in shown if name in maps}


def original(sample: Sample) -> np.ndarray:
    """Return the image that the detector saw, (H, W, 3) uint8 RGB: from the comparison, else from the dataset's file.

    Raises UnreadableImage, also if that file has changed.
    """
    box = sample.original
    if sample.comparison and box is not None:
        whole = decode_image(read_file(str(sample.folder / sample.comparison)), None)
        return whole[box.top : box.top + box.height, box.left : box.left + box.width]
    if sample.lost or box is None:
        raise UnreadableImage(sample.lost)
    return decode_image(read_bytes(sample.path), box.width)


def overlays(sample: Sample) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a sample's image and its overlays by layer, all (H, W, 3) uint8 RGB, from files or redrawn.

    Raises UnreadableImage.
    """
    try:
        files = {layer.name: str(sample.overlay(layer.name)) for layer in sample.layers}
        return original(sample), {layer: decode_image(read_file(file), None) for layer, file in files.items()}
    except UnreadableImage:
        image, layers = redraw(sample)
        return image, {layer.name: layer.overlay for layer in layers}


def redraw(sample: Sample) -> tuple[np.ndarray, list[LayerImage]]:
    """Redraw a sample from its saved maps. Return its image, (H, W, 3) uint8 RGB, and its layers.

    Raises UnreadableImage.
    """
    image, maps = original(sample), stored_maps(sample)
    layers, denied, kinds = {}, {}, {}
    for layer in sample.layers:
        if layer.name not in maps:
            raise UnreadableImage(f"the map of {layer.name} is gone")
        *both, spanned = maps[layer.name]
        raw, signed = (torch.from_numpy(one.copy()).unsqueeze(0) for one in both)
        leftover = torch.full_like(signed, float("inf")) if layer.artefact else None
        layers[layer.name] = LayerMaps.of(signed, raw, Canvas((image.shape[0], image.shape[1]), spanned), leftover)
        denied[layer.name] = [layer.check is not None and layer.check.word == ARTEFACT]
        kinds[layer.name] = layer.kind
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
    colormap = read_manifest(reader(sample.folder.parent.parent)).colormap
    return image, layer_images(pixels, layers, colormap, sample.target == SIGNED_TARGET, denied, kinds)[0]
