"""The tables that are written from a run's database: predictions, features, metrics, manifest, measurements."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..base.decision import predicted_class
from ..base.errors import InputError
from ..base.files import whole_file, write_json, write_table, write_whole
from ..base.text import one_line
from ..base.typed import MISSING, Count, Misfit, Number, Share, fit
from ..judge.verdict import Choice
from .database import DatabaseRow, RunDatabase
from .manifest import MANIFEST, METRICS
from .run_folder import read_manifest

COLUMNS = (
    "index", "path", "dataset", "forgery", "video", "label", "prob_fake", "logit_real", "logit_fake", "predicted",
    "correct",
)  # fmt: skip
PREDICTIONS, UNREADABLE, GAPS, CLIPS = "predictions.csv", "unreadable.csv", "gaps.csv", "clips.csv"
FEATURES = "features.npz"  # the input of the head for every frame (--save_features)
CALIBRATION_JSON, CALIBRATION_CSV = "calibration.json", "calibration.csv"
CALIBRATION_COLUMNS = (
    "method", "layer", "site", "backward", "named", "used", "fall", "fall_random", "beyond_random", "beyond_low",
    "beyond_high", "share_of_best", "share_by_second_fill",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsEntry:
    """The metrics of a dataset that the report needs."""

    acc: Share | None
    auc: Share | None
    eer: Share | None
    ap: Share | None
    video_auc: Share | None
    frames: Count
    videos: Count
    unreadable: Count
    note: str | None = None  # the reason if there is no AUC
    eer_host: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The fields of a prediction that are used in computations."""

    index: Count
    path: str
    forgery: str
    video: str
    label: Literal[0, 1]
    prob_fake: Share
    logit_real: Number
    logit_fake: Number


def metrics_of(database: RunDatabase) -> dict[str, dict[str, Any]]:
    """Return the metrics by dataset; empty until the run has finished. Raises InputError if they are damaged."""
    if not (text := database.own("metrics")):
        return {}
    try:
        values = json.loads(text)
        for name, entry in fit(values, dict[str, MetricsEntry]).items():
            if entry.auc is None and entry.note is None:
                raise Misfit(MISSING, (name, "note"), None, "")
    except Misfit as misfit:
        raise InputError(misfit.text(f"{database.path}: metrics", "which no run writes; run again")) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{database.path}: the metrics cannot be read ({one_line(error)}); run again") from error
    return dict(values)


def prediction_rows(database: RunDatabase, dataset: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of `predictions.csv`, one per readable frame, by column. Raises InputError."""
    for row in database.rows("frame", "WHERE dataset = ? AND reason = ''", dataset):
        _, index, path, forgery, video, label, real, fake, prob_fake, *_ = row
        values = (index, path, dataset, forgery, video, label, prob_fake, real, fake)
        found = dict(zip(COLUMNS, values, strict=False))
        try:
            fit(found, Scored)
        except Misfit as misfit:
            raise InputError(
                f"{database.path}: a frame of {dataset}: {misfit}, which no run writes; run again"
            ) from None
        found["predicted"] = predicted_class(prob_fake)
        found["correct"] = found["predicted"] == label
        yield found


def write_dataset_tables(database: RunDatabase, dataset: str, folder: Path) -> None:
    write_predictions(folder / PREDICTIONS, prediction_rows(database, dataset))
    unreadable = [(row[1], row[2], row[9]) for row in unreadable_rows(database, dataset)]
    if unreadable:
        write_table(folder / UNREADABLE, ("index", "path", "reason"), unreadable)
    write_features(database, dataset, folder)
    _write_contents(database, dataset, folder)


def write_predictions(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `predictions.csv` from `prediction_rows`. Nine digits represent a float32 exactly."""
    cells = ([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows)
    write_table(path, COLUMNS, cells)


def unreadable_rows(database: RunDatabase, dataset: str) -> Iterator[DatabaseRow]:
    return database.rows("frame", "WHERE dataset = ? AND reason != ''", dataset)


def write_run_tables(database: RunDatabase, folder: Path) -> None:
    """Write the tables of the whole run; for an unfinished run, those that exist so far."""
    for row in database.rows("calibration", "WHERE key != ''"):  # an empty key: no trial was made
        choice = Choice.from_json(json.loads(row[1]))
        write_json(folder / CALIBRATION_JSON, {"key": row[2], "choice": choice.to_json()})
        write_table(folder / CALIBRATION_CSV, CALIBRATION_COLUMNS, _calibration_rows(choice))
    _write_contents(database, "", folder)
    if metrics := metrics_of(database):
        write_json(folder / METRICS, metrics)
        write_json(folder / MANIFEST, read_manifest(database).to_json())  # last, because it marks the run as complete


def _write_contents(database: RunDatabase, dataset: str, folder: Path) -> None:
    for row in database.rows("measurement", "WHERE dataset = ? AND name LIKE '%.%'", dataset):
        write_whole(folder / Path(row[1]).name, row[2])


def _calibration_rows(choice: Choice) -> Iterator[list[object]]:
    for row in choice.rows:
        numbers = (row.fall, row.random, *row.beyond, row.share, row.second)
        shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        yield [*row.candidate.facts().values(), row.named, row.candidate == choice.used, *shown]


def features_of(database: RunDatabase, dataset: str) -> dict[int, np.ndarray]:
    """Return index → features (D,) float32 of each frame, ascending; empty if the run saved none."""
    rows = database.rows("feature", "WHERE dataset = ?", dataset)
    return {row[1]: np.frombuffer(row[2], np.float32) for row in rows}


def write_features(database: RunDatabase, dataset: str, folder: Path) -> None:
    """Write features.npz, completely or not at all, if the run saved features.

    It holds `feat` (N, D) float32; `index`; `label` (0 real, 1 fake); `label_spe`, the forgery's number in
    `forgery_names`; and the strings `forgery`, `video`, `path`. DF40's t-SNE script reads `feat` and `label_spe`.
    """
    found = features_of(database, dataset)
    if not found:
        return
    frames = list(database.rows("frame", "WHERE dataset = ?", dataset))
    chosen = [row for row in frames if row[1] in found]
    forgeries = list(dict.fromkeys(row[3] for row in frames))
    arrays = {
        "feat": np.stack([found[row[1]] for row in chosen]),
        "index": np.array([row[1] for row in chosen]),
        "label": np.array([row[5] for row in chosen]),
        "label_spe": np.array([forgeries.index(row[3]) for row in chosen]),
        "forgery_names": _strings(forgeries),
        **{name: _strings([row[i] for row in chosen]) for name, i in (("forgery", 3), ("video", 4), ("path", 2))},
    }
    with whole_file(folder / FEATURES) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes them for its own flag


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array([value.encode("utf-8", "backslashreplace").decode() for value in values])
