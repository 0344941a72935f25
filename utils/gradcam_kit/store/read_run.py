"""A run read back from its folder: manifest, metrics, predictions, explained samples. Reads files only.

A run that was stopped half-way is read as far as it got, and samples whose files are gone are listed as such.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.errors import InputError
from ..base.files import read_table
from ..base.text import one_line, printable, shortened
from ..data.gaps import ForgeryGaps, read_gaps
from ..data.images import UnreadableImage
from .bundles import bundled_samples
from .journal import COLUMNS, GAPS, PREDICTIONS, REASON, UNREADABLE, read_rows
from .manifest import FINISHED, METRICS, STARTED, Manifest, manifest_path, read_json, read_manifest
from .sample import Sample
from .sample_folder import read_sample, sample_folders
from .typed_values import count, number, string

SHARES = ("acc", "auc", "eer", "ap", "video_auc")  # of metrics.json: from 0 to 1, or null
OUTCOMES = ("TP", "FP", "TN", "FN")  # positive means fake


class DatasetOnDisk(NamedTuple):
    """One dataset of a run. `label` and `prob_fake` hold every readable frame; `metrics` None: not written yet."""

    name: str
    folder: Path
    metrics: dict[str, Any] | None
    complete: bool
    frames: int  # in the dataset, after sampling
    label: np.ndarray
    prob_fake: np.ndarray
    samples: list[Sample]
    explained: int  # sample folders that are there, `samples` may be fewer
    unreadable: int
    gaps: list[ForgeryGaps]  # the forgeries that lack frames
    video_frames: list[int]  # readable frames of each video


class RunOnDisk(NamedTuple):
    """A run's folder. `finished` False: it stopped half-way, or still runs."""

    folder: Path
    finished: bool
    manifest: Manifest
    datasets: list[DatasetOnDisk]

    @property
    def layers(self) -> list[str]:
        """Names of the explained layers, in the run's order."""
        names = (layer.name for data in self.datasets for sample in data.samples for layer in sample.layers)
        return list(dict.fromkeys(names))


def read_run(folder: Path, samples_at_most: int = sys.maxsize) -> RunOnDisk:
    """Read a run. Of a dataset with more explained samples than that, every k-th is read.

    Raises InputError where `folder` holds no run, or a manifest or metrics file that is damaged.
    """
    path = manifest_path(folder)
    if path is None:
        raise InputError(
            f"{folder}: holds no run (neither {FINISHED} nor {STARTED}); give the --gradcam_output_dir of a run"
        )
    manifest = read_manifest(path)
    metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else {}
    for name in manifest.datasets:
        if (folder / name).is_symlink():
            raise InputError(
                f"{folder / name}: is a symbolic link, which is not followed: put the dataset's folder there"
            )
    datasets = [
        _read_dataset(folder / name, metrics.get(name), record.frames, samples_at_most)
        for name, record in manifest.datasets.items()
    ]
    return RunOnDisk(folder, path.name == FINISHED, manifest, datasets)


def read_metrics(path: Path) -> dict[str, dict[str, Any]]:
    """Dataset → its entry. Raises InputError for a file that is damaged."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, expected a mapping; run again")
    for name, entry in values.items():
        try:
            for key in SHARES:
                if entry[key] is not None:
                    number(entry, key, 0, 1)
            for key in ("frames", "videos", "unreadable"):
                count(entry, key)
            if entry["auc"] is None:
                string(entry, "note")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the entry {error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise InputError(f"{path}: {printable(name)}: {reason}, which no run writes; run again") from error
    return values


def _read_dataset(folder: Path, metrics: dict[str, Any] | None, frames: int, samples_at_most: int) -> DatasetOnDisk:
    folders = all_samples(folder)
    step = -(-len(folders) // samples_at_most) or 1
    wanted = {index for index, _ in folders[::step]}
    labels, scores, rows = [], [], {}
    videos: Counter[tuple[str, str]] = Counter()
    for row in prediction_rows(folder):
        labels.append(int(row["label"]))
        scores.append(float(row["prob_fake"]))
        videos[row["forgery"], row["video"]] += 1
        if int(row["index"]) in wanted:
            rows[int(row["index"])] = row
    samples = [read_sample(place, index, rows.get(index)) for index, place in folders[::step]]
    unreadable = folder / UNREADABLE
    return DatasetOnDisk(
        name=folder.name,
        folder=folder,
        metrics=metrics,
        complete=(folder / PREDICTIONS).is_file(),
        frames=frames,
        label=np.array(labels, dtype=np.int64),
        prob_fake=np.array(scores, dtype=np.float64),
        samples=[sample for sample in samples if sample is not None],
        explained=len(folders),
        unreadable=sum(1 for _ in read_table(unreadable)) if unreadable.is_file() else 0,
        gaps=read_gaps(folder / GAPS) if (folder / GAPS).is_file() else [],
        video_frames=list(videos.values()),
    )


def all_samples(dataset_folder: Path) -> list[tuple[int, Path]]:
    """The samples of a dataset by index, ascending: folders, and those that were packed into bundles."""
    if not dataset_folder.is_dir():
        return []
    return sorted({**dict(bundled_samples(dataset_folder)), **dict(sample_folders(dataset_folder))}.items())


def prediction_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a dataset's predictions.csv or, while there is none yet, of its journals, each frame once."""
    table = folder / PREDICTIONS
    if table.is_file():
        yield from read_predictions(table)
        return
    seen = {int(row["index"]): row for row in read_rows(folder) if not row[REASON]}
    yield from (seen[index] for index in sorted(seen))


def read_predictions(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a `predictions.csv`, whose numbers are numbers. Raises InputError, which names the line."""
    for line, row in enumerate(read_table(path, COLUMNS), start=2):
        try:
            known = row["index"].isdigit() and row["label"] in ("0", "1") and row["predicted"] in ("0", "1")
            finite = all(math.isfinite(float(row[column])) for column in ("logit_real", "logit_fake"))
            if not (known and finite and 0 <= float(row["prob_fake"]) <= 1 and int(row["index"]) >= 0):
                raise ValueError
        except ValueError as error:
            raise InputError(f"{path}: row {line} is {shortened(repr(list(row.values())))}; run again") from error
        yield row


def sample_maps(sample: Sample, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Raw maps (h, w) of the named layers; a layer that is empty, lost or unreadable is left out."""
    maps = {}
    for layer in sample.layers:
        if layer.name in layers and not layer.empty:
            try:
                maps[layer.name] = sample.raw_map(layer)
            except UnreadableImage:
                continue  # the report's card says that the image is gone
    return maps
