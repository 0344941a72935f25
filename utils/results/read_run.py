"""A run read back from its folder: what it says of itself, its predictions, its explained samples. Reads files only.

A run that was stopped half-way is read as far as it got, and samples whose files are gone are listed as such.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from utils.data.pictures import UnreadablePicture
from utils.errors import InputError
from utils.results.grey_maps import GREY_MAPS, grey_name, read_grey_map
from utils.results.journal import REASON, read_rows
from utils.results.overlays import Box
from utils.results.run_folder import FINISHED, STARTED
from utils.text import AS_IT_CAME

OUTCOMES = ("TP", "FP", "TN", "FN")  # positive means fake


class LayerResult(NamedTuple):
    """The map of one layer for one sample."""

    name: str
    raw_minimum: float
    raw_maximum: float
    empty: bool  # no patch stands out: there is nothing to weigh
    drawn_empty: bool  # there is nothing to show


class SampleResult(NamedTuple):
    """One explained sample. `lost` says in words what is gone of it; `layers` is then empty."""

    folder: Path
    number: int  # its index in the data set
    path: str
    dataset: str
    forgery: str
    video: str
    label: int
    prob_fake: float
    layers: list[LayerResult]
    original: Box | None  # where the comparison picture shows the original
    comparison: str  # the comparison picture's file name
    details: dict[str, Any]  # all of sample<i>.json
    lost: str

    @property
    def predicted(self) -> int:
        return int(self.prob_fake > 0.5)

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return self.prob_fake if self.predicted else 1.0 - self.prob_fake

    @property
    def outcome(self) -> str:
        """TP, FP, TN or FN, where positive means fake."""
        return ("T" if self.predicted == self.label else "F") + ("P" if self.predicted else "N")

    def raw_map(self, layer: LayerResult) -> np.ndarray:
        """(h, w) float32, to half of 1/255 of its range. Raises UnreadablePicture."""
        grey = read_grey_map(self.folder / GREY_MAPS / grey_name(layer.name))
        return grey * (layer.raw_maximum - layer.raw_minimum) + layer.raw_minimum


class DatasetResults(NamedTuple):
    """One data set of a run. `label` and `prob_fake` hold every readable frame; `metrics` None: not written yet."""

    name: str
    folder: Path
    metrics: dict[str, Any] | None
    complete: bool
    frames: int  # in the data set, after sampling
    label: np.ndarray
    prob_fake: np.ndarray
    samples: list[SampleResult]
    explained: int  # sample folders that are there, `samples` may be fewer
    unreadable: int


class RunResults(NamedTuple):
    """A run's folder. `finished` False: it stopped half-way, or still runs."""

    folder: Path
    finished: bool
    manifest: dict[str, Any]
    datasets: list[DatasetResults]

    @property
    def layers(self) -> list[str]:
        """Names of the explained layers, in the run's order."""
        names = (layer.name for data in self.datasets for sample in data.samples for layer in sample.layers)
        return list(dict.fromkeys(names))


def read_run(folder: Path, samples_at_most: int = 5_000) -> RunResults:
    """Read a run. Of a data set with more explained samples than that, every k-th is read.

    Raises InputError where `folder` holds no run, or a manifest or metrics file that is damaged.
    """
    finished = (folder / FINISHED).is_file()
    if not finished and not (folder / STARTED).is_file():
        raise InputError(
            f"{folder}: holds no run (neither {FINISHED} nor {STARTED}); give the --gradcam_output_dir of a run"
        )
    manifest = _read_json(folder / (FINISHED if finished else STARTED))
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    names = manifest.get("datasets")
    if not isinstance(names, dict):
        raise InputError(f"{folder}: the manifest names no data sets; run again")
    datasets = []
    for name, about in names.items():
        place = folder / Path(name).name
        datasets.append(_read_dataset(name, place, metrics.get(name), int(about["frames"]), samples_at_most))
    return RunResults(folder, finished, manifest, datasets)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); run again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, expected keys with values; run again")
    return values


def _read_dataset(
    name: str, folder: Path, metrics: dict[str, Any] | None, frames: int, samples_at_most: int
) -> DatasetResults:
    folders = sample_folders(folder)
    step = -(-len(folders) // samples_at_most) or 1
    wanted = {number for number, _ in folders[::step]}
    labels, scores, rows = [], [], {}
    for row in prediction_rows(folder):
        labels.append(int(row["label"]))
        scores.append(float(row["prob_fake"]))
        if int(row["index"]) in wanted:
            rows[int(row["index"])] = row
    samples = [read_sample(place, number, rows.get(number)) for number, place in folders[::step]]
    return DatasetResults(
        name=name,
        folder=folder,
        metrics=metrics,
        complete=(folder / "predictions.csv").is_file(),
        frames=frames,
        label=np.array(labels, dtype=np.int64),
        prob_fake=np.array(scores, dtype=np.float64),
        samples=[sample for sample in samples if sample is not None],
        explained=len(folders),
        unreadable=_count_unreadable(folder),
    )


def sample_folders(dataset_folder: Path) -> list[tuple[int, Path]]:
    """The sample folders of a data set by index, ascending."""
    if not dataset_folder.is_dir():
        return []
    found = ((re.fullmatch(r"sample([0-9]+)", path.name), path) for path in dataset_folder.iterdir())
    return sorted((int(name[1]), path) for name, path in found if name and path.is_dir())


def prediction_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a data set's predictions.csv or, while there is none yet, of its journals, each frame once."""
    table = folder / "predictions.csv"
    if not table.is_file():
        seen = {int(row["index"]): row for row in read_rows(folder) if not row[REASON]}
        yield from (seen[index] for index in sorted(seen))
        return
    with table.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
        yield from csv.DictReader(file)


def _count_unreadable(folder: Path) -> int:
    path = folder / "unreadable.csv"
    if not path.is_file():
        return 0
    with path.open(newline="", encoding="utf-8", errors=AS_IT_CAME) as file:
        return sum(1 for _ in csv.DictReader(file))


def read_sample(folder: Path, number: int, row: dict[str, str] | None) -> SampleResult | None:
    """One sample's folder; where its JSON is gone, what predictions.csv has of it; None where that has nothing."""
    path = folder / f"sample{number}.json"
    try:
        return _from_details(folder, number, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        reason = f"{path.name} is gone"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{path.name} is damaged ({type(error).__name__})"
    if row is None:
        return None
    return SampleResult(
        folder, number, row["path"], row["dataset"], row["forgery"], row["video"], int(row["label"]),
        float(row["prob_fake"]), [], None, "", {}, reason,
    )  # fmt: skip


def _from_details(folder: Path, number: int, details: dict[str, Any]) -> SampleResult:
    layers = [
        LayerResult(
            str(one["name"]),
            float(one["raw_minimum"]),
            float(one["raw_maximum"]),
            bool(one["empty"]),
            bool(one["drawn_empty"]),
        )
        for one in details["layers"]
    ]
    there = {file.name for file in folder.iterdir()}
    comparison = next((name for name in sorted(there) if name.startswith("gradcam_comparison.")), "")
    missing = not comparison or GREY_MAPS not in there
    return SampleResult(
        folder=folder,
        number=number,
        path=str(details["path"]),
        dataset=str(details["dataset"]),
        forgery=str(details["forgery"]),
        video=str(details["video"]),
        label=int(details["label"]),
        prob_fake=float(details["prob_fake"]),
        layers=[] if missing else layers,
        original=Box(**details["original"]),
        comparison=comparison,
        details=details,
        lost="its pictures were deleted" if missing else "",
    )


def sample_maps(sample: SampleResult, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Raw maps (h, w) of the named layers; a layer that is empty, lost or unreadable is left out."""
    maps = {}
    for layer in sample.layers:
        if layer.name in layers and not layer.empty:
            try:
                maps[layer.name] = sample.raw_map(layer)
            except UnreadablePicture:
                continue  # the report's card says that the picture is gone
    return maps
