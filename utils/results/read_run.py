"""A run read back from its folder: manifest, metrics, predictions, explained samples. Reads files only.

A run that was stopped half-way is read as far as it got, and samples whose files are gone are listed as such.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from utils.data.gaps import ForgeryGaps, read_gaps
from utils.data.images import UnreadableImage
from utils.errors import InputError
from utils.files import read_table
from utils.results.journal import GAPS, PREDICTIONS, REASON, UNREADABLE, read_rows
from utils.results.manifest import FINISHED, METRICS, STARTED, Manifest, manifest_path, read_json, read_manifest
from utils.results.sample_folder import Sample, read_sample, sample_folders

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
    metrics = _read_metrics(folder / METRICS)
    datasets = [
        _read_dataset(folder / name, metrics.get(name), record.frames, samples_at_most)
        for name, record in manifest.datasets.items()
    ]
    return RunOnDisk(folder, path.name == FINISHED, manifest, datasets)


def _read_metrics(path: Path) -> dict[str, Any]:
    """Dataset → its entry; empty while there are none."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, expected a mapping; run again")
    return values


def _read_dataset(folder: Path, metrics: dict[str, Any] | None, frames: int, samples_at_most: int) -> DatasetOnDisk:
    folders = sample_folders(folder)
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


def prediction_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a dataset's predictions.csv or, while there is none yet, of its journals, each frame once."""
    table = folder / PREDICTIONS
    if table.is_file():
        yield from read_table(table)
        return
    seen = {int(row["index"]): row for row in read_rows(folder) if not row[REASON]}
    yield from (seen[index] for index in sorted(seen))


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
