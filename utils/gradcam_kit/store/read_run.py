"""A run read back from its folder: manifest, metrics, predictions, explained samples. Reads files only.

A run that was stopped half-way is read as far as it got, and samples whose files are gone are listed as such.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..base.errors import InputError
from ..base.files import read_table
from ..base.text import shortened
from ..base.typed import MISSING, Count, Misfit, Number, Share, fit
from ..data.gaps import ForgeryGaps, read_gaps
from ..data.images import UnreadableImage
from .bundles import bundled_samples
from .journal import COLUMNS, GAPS, PREDICTIONS, REASON, UNREADABLE, read_rows
from .manifest import FINISHED, METRICS, STARTED, Manifest, manifest_path, read_json, read_manifest
from .sample import Sample
from .sample_folder import read_sample, sample_folders

OUTCOMES = ("TP", "FP", "TN", "FN")  # positive means fake


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsEntry:
    """What the report needs of a dataset's entry in metrics.json, which holds more."""

    acc: Share | None
    auc: Share | None
    eer: Share | None
    ap: Share | None
    video_auc: Share | None
    frames: Count
    videos: Count
    unreadable: Count
    note: str | None = None  # why there is no AUC


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A row of predictions.csv, as far as others compute with it."""

    index: Count
    label: Literal[0, 1]
    predicted: Literal[0, 1]
    prob_fake: Share
    logit_real: Number
    logit_fake: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOnDisk:
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
    """Read a run; of a dataset with more explained samples than that, every k-th. Raises InputError."""
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
    try:
        for name, entry in fit(values, dict[str, MetricsEntry]).items():
            if entry.auc is None and entry.note is None:
                raise Misfit(MISSING, (name, "note"), None, "")
    except Misfit as misfit:
        raise InputError(misfit.text(str(path), "which no run writes; run again")) from None
    return dict(values)


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
    """Rows of a dataset's predictions.csv (InputError where one is wrong) or else of its journals, each frame once."""
    table = folder / PREDICTIONS
    if table.is_file():
        for line, row in enumerate(read_table(table, COLUMNS), start=2):
            try:
                fit(row, Scored, text=True)
            except Misfit as misfit:
                found = shortened(repr(list(row.values())))
                raise InputError(f"{table}: row {line} is {found}: {misfit}; run again") from None
            yield row
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
