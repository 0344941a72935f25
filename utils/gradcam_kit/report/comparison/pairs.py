"""Two runs matched frame by frame: metrics with paired intervals, decisions that differ, maps that agree or do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ...base.decision import THRESHOLD
from ...base.errors import InputError
from ...judge.bootstrap import LEVEL, VideoBootstrap
from ...store.read_run import DatasetOnDisk, RunOnDisk, prediction_rows, sample_maps
from ...store.sample import Sample

FEWEST_VIDEOS = 2  # of each class, for an interval
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # label, prob_fake, weight (N,) → NaN where undefined


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedFrames:
    """The frames that both runs evaluated of one dataset, N of them. `only_a`, `only_b`: how many the other lacks."""

    name: str
    path: list[str]
    forgery: list[str]
    video: list[tuple[str, str]]  # forgery and name
    label: np.ndarray
    prob_a: np.ndarray
    prob_b: np.ndarray
    only_a: int
    only_b: int

    @property
    def differ(self) -> np.ndarray:
        """(N,) bool: where one run says fake and the other real."""
        return (self.prob_a > THRESHOLD) != (self.prob_b > THRESHOLD)


class MetricDifference(NamedTuple):
    """One metric of both runs, and B − A with its 95 % interval over videos (NaN where there is none)."""

    name: str
    a: float
    b: float
    low: float
    high: float


class PairedSample(NamedTuple):
    """A frame explained in both runs. `correlation`: of the raw maps, by pair of layers; NaN where one is empty."""

    a: Sample
    b: Sample
    correlation: dict[tuple[str, str], float]

    @property
    def differs(self) -> bool:
        """Whether one run says fake and the other real."""
        return self.a.predicted != self.b.predicted


def paired_frames(a: RunOnDisk, b: RunOnDisk) -> list[PairedFrames]:
    """The datasets that both runs have. Raises InputError where they have no frame in common."""
    of_b = {data.name: data for data in b.datasets}
    paired = [_paired(data, of_b[data.name]) for data in a.datasets if data.name in of_b]
    if not any(one.path for one in paired):
        there = " and ".join(
            f"{run.folder} has {', '.join(data.name for data in run.datasets) or 'none'}" for run in (a, b)
        )
        raise InputError(f"the two runs have no frame in common: {there}; compare runs over the same --test_dataset")
    return [one for one in paired if one.path]


def _paired(a: DatasetOnDisk, b: DatasetOnDisk) -> PairedFrames:
    of_a, of_b = ({row["path"]: row for row in prediction_rows(data.folder)} for data in (a, b))
    rows = [row for path, row in of_a.items() if path in of_b and row["label"] == of_b[path]["label"]]
    return PairedFrames(
        name=a.name,
        path=[row["path"] for row in rows],
        forgery=[row["forgery"] for row in rows],
        video=[(row["forgery"], row["video"]) for row in rows],
        label=np.array([int(row["label"]) for row in rows]),
        prob_a=np.array([float(row["prob_fake"]) for row in rows]),
        prob_b=np.array([float(of_b[row["path"]]["prob_fake"]) for row in rows]),
        only_a=len(of_a) - len(rows),
        only_b=len(of_b) - len(rows),
    )


# ------------------------------------------------------------------------------------------------------------- metrics


def accuracy(label: np.ndarray, prob_fake: np.ndarray, weight: np.ndarray) -> float:
    """Share of the frames decided rightly."""
    right = (prob_fake > THRESHOLD) == (label == 1)
    return float((right * weight).sum() / weight.sum()) if weight.sum() else float("nan")


def _ranking(name: str) -> Metric:
    """The metric of that name in scikit-learn, for frames of both classes."""

    def metric(label: np.ndarray, prob_fake: np.ndarray, weight: np.ndarray) -> float:
        from sklearn import metrics

        kept = weight > 0
        if len(set(label[kept].tolist())) < 2:
            return float("nan")
        return float(getattr(metrics, name)(label[kept], prob_fake[kept], sample_weight=weight[kept]))

    return metric


METRICS = {"ACC": accuracy, "AUC": _ranking("roc_auc_score"), "AP": _ranking("average_precision_score")}


def metric_differences(frames: PairedFrames) -> list[MetricDifference]:
    """Each metric of both runs; the interval is a bootstrap over videos, which both runs draw together."""
    one = np.ones(len(frames.path))
    bootstrap = VideoBootstrap(frames.video, seed=0, resamples=1000)
    by_class = [len(set(bootstrap.video[frames.label == kind])) for kind in (0, 1)]

    def difference(metric: Metric, weight: np.ndarray) -> float:
        return metric(frames.label, frames.prob_b, weight) - metric(frames.label, frames.prob_a, weight)

    found = []
    for name, metric in METRICS.items():
        a, b = metric(frames.label, frames.prob_a, one), metric(frames.label, frames.prob_b, one)
        low = high = float("nan")
        if min(by_class) >= FEWEST_VIDEOS:
            drawn = (weights[bootstrap.video].astype(float) for weights in bootstrap.weights)  # one at a time
            differences = [difference(metric, weight) for weight in drawn]
            low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        found.append(MetricDifference(name, a, b, low, high))
    return found


# ---------------------------------------------------------------------------------------------------------------- maps


def paired_layers(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """Which layers stand beside each other: those of one name or, where there is none, the first with the first."""
    common = [(layer, layer) for layer in a if layer in b]
    return common or list(zip(a, b, strict=False))  # as many as both have


def paired_samples(a: DatasetOnDisk, b: DatasetOnDisk, layers: Sequence[tuple[str, str]]) -> list[PairedSample]:
    """The frames that both runs explained: those first where the decisions differ, then by how far the scores do."""
    of_b = {sample.path: sample for sample in b.samples if not sample.lost}
    pairs = [(sample, of_b[sample.path]) for sample in a.samples if not sample.lost and sample.path in of_b]
    found = [PairedSample(one, other, _correlations(one, other, layers)) for one, other in pairs]
    return sorted(found, key=lambda pair: (not pair.differs, -abs(pair.a.prob_fake - pair.b.prob_fake)))


def _correlations(a: Sample, b: Sample, layers: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    maps_a, maps_b = (sample_maps(sample, [pair[i] for pair in layers]) for i, sample in enumerate((a, b)))
    return {
        pair: correlation(maps_a[pair[0]], maps_b[pair[1]]) if pair[0] in maps_a and pair[1] in maps_b else np.nan
        for pair in layers
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of two maps (h, w); one of another grid is resized to the finer one. NaN for a constant map."""
    size = max(one.shape, other.shape)[::-1]
    flat = [cv2.resize(each, size, interpolation=cv2.INTER_LINEAR).ravel().astype(np.float64) for each in (one, other)]
    if min(each.std() for each in flat) == 0:
        return float("nan")
    return float(np.corrcoef(*flat)[0, 1])


def agreement(samples: Sequence[PairedSample], layers: Sequence[tuple[str, str]]) -> list[tuple[str, list[float], int]]:
    """(forgery, mean correlation of each pair of layers, samples), each forgery and, last, all of them."""
    values = np.array([sample.correlation[pair] for sample in samples for pair in layers])
    values = values.reshape(len(samples), len(layers))
    rows = []
    for name, members in by_forgery([sample.a.forgery for sample in samples]):
        finite = [column[np.isfinite(column)] for column in values[members].T]
        rows.append((name, [float(np.mean(c)) if len(c) else float("nan") for c in finite], int(members.sum())))
    return rows


def by_forgery(forgeries: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """(name, which are of it (N,) bool): each forgery and, last, all of them."""
    names = np.array(forgeries, dtype=object)
    groups = [(name, names == name) for name in dict.fromkeys(forgeries)]
    return [*groups, ("all", np.ones(len(names), dtype=bool))]
