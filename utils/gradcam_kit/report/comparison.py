"""`python -m utils.report compare A B`: a page that compares two runs of the same data frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..base.decision import CLASS_NAMES, THRESHOLD
from ..base.errors import InputError
from ..base.files import partial_folder, read_table, replace_folder, write_table
from ..data.images import UnreadableImage
from ..drawing.overlays import encode
from ..judge.bootstrap import LEVEL, VideoBootstrap
from ..run.exports import REGIONS_FILE
from ..store.read_run import DatasetOnDisk, RunOnDisk, frame_rows, overlays, read_run, sample_maps
from ..store.sample import Sample
from .page import joined, require_jinja2, template, without_names
from .page_parts.facts import facts
from .page_parts.gallery import shared_path

PAGE, FRAMES, IMAGES = "index.html", "frames.csv", "images"
SIZE = 224  # pixels of an image on the page
STYLES = ("base.css", "analysis.css", "compare.css")
READ = 5_000  # samples per dataset of each run
COLUMNS = ("path", "dataset", "forgery", "video", "label", "prob_fake_a", "prob_fake_b", "decisions_differ")
FEWEST_VIDEOS = 2  # per class, for an interval
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # label, prob_fake, weight (N,) → NaN if undefined


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedFrames:
    """The N frames of a dataset that both runs evaluated. `only_a`, `only_b`: number of frames in one run only."""

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
        """Whether the predictions differ, (N,) bool."""
        return (self.prob_a > THRESHOLD) != (self.prob_b > THRESHOLD)


class MetricDifference(NamedTuple):
    """One metric of both runs, and B − A with its 95 % interval over videos (NaN if there is none)."""

    name: str
    a: float
    b: float
    low: float
    high: float


class PairedSample(NamedTuple):
    """A frame explained in both runs. `correlation`: of the raw maps, by pair of layers; NaN if one is empty."""

    a: Sample
    b: Sample
    correlation: dict[tuple[str, str], float]

    @property
    def differs(self) -> bool:
        return self.a.predicted != self.b.predicted


def paired_frames(a: RunOnDisk, b: RunOnDisk) -> list[PairedFrames]:
    """Match the frames of the datasets that both runs have. Raises InputError if no frame is in common."""
    of_b = {data.name: data for data in b.datasets}
    paired = [_paired(data, of_b[data.name]) for data in a.datasets if data.name in of_b]
    if not any(one.path for one in paired):
        there = " and ".join(
            f"{run.folder} has {', '.join(data.name for data in run.datasets) or 'none'}" for run in (a, b)
        )
        raise InputError(f"the two runs have no frame in common: {there}; compare runs over the same --test_dataset")
    return [one for one in paired if one.path]


def _paired(a: DatasetOnDisk, b: DatasetOnDisk) -> PairedFrames:
    of_a, of_b = ({row["path"]: row for row in frame_rows(data.folder)} for data in (a, b))
    rows = [row for path, row in of_a.items() if path in of_b and row["label"] == of_b[path]["label"]]
    return PairedFrames(
        name=a.name,
        path=[row["path"] for row in rows], forgery=[row["forgery"] for row in rows],
        video=[(row["forgery"], row["video"]) for row in rows],
        label=np.array([int(row["label"]) for row in rows]),
        prob_a=np.array([float(row["prob_fake"]) for row in rows]),
        prob_b=np.array([float(of_b[row["path"]]["prob_fake"]) for row in rows]),
        only_a=len(of_a) - len(rows), only_b=len(of_b) - len(rows),
    )  # fmt: skip


def accuracy(label: np.ndarray, prob_fake: np.ndarray, weight: np.ndarray) -> float:
    right = (prob_fake > THRESHOLD) == (label == 1)
    return float((right * weight).sum() / weight.sum()) if weight.sum() else float("nan")


def _ranking(name: str) -> Metric:
    """Return scikit-learn's metric of this name; NaN with one class."""

    def metric(label: np.ndarray, prob_fake: np.ndarray, weight: np.ndarray) -> float:
        from sklearn import metrics

        kept = weight > 0
        if len(set(label[kept].tolist())) < 2:
            return float("nan")
        return float(getattr(metrics, name)(label[kept], prob_fake[kept], sample_weight=weight[kept]))

    return metric


METRICS = {"ACC": accuracy, "AUC": _ranking("roc_auc_score"), "AP": _ranking("average_precision_score")}


def metric_differences(frames: PairedFrames) -> list[MetricDifference]:
    """Compute each metric of both runs; the interval is a paired bootstrap over videos."""
    one = np.ones(len(frames.path))
    bootstrap = VideoBootstrap(frames.video, seed=0, resamples=1000)
    by_class = [len(set(bootstrap.video[frames.label == kind])) for kind in (0, 1)]
    found = []
    for name, metric in METRICS.items():
        a, b = metric(frames.label, frames.prob_a, one), metric(frames.label, frames.prob_b, one)
        low = high = float("nan")
        if min(by_class) >= FEWEST_VIDEOS:
            drawn = (weights[bootstrap.video].astype(float) for weights in bootstrap.weights)  # one resample at a time
            differences = [
                metric(frames.label, frames.prob_b, weight) - metric(frames.label, frames.prob_a, weight)
                for weight in drawn
            ]
            low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        found.append(MetricDifference(name, a, b, low, high))
    return found


def paired_layers(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the layers of the same name; if there are none, pair them in order."""
    common = [(layer, layer) for layer in a if layer in b]
    return common or list(zip(a, b, strict=False))  # as many as both have


def paired_samples(a: DatasetOnDisk, b: DatasetOnDisk, layers: Sequence[tuple[str, str]]) -> list[PairedSample]:
    """Match the samples of both runs: different predictions first, then by the difference of scores."""
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
    """Compute Pearson's correlation of two maps (h, w), at the finer grid; NaN for a constant map."""
    size = max(one.shape, other.shape)[::-1]
    flat = [cv2.resize(each, size, interpolation=cv2.INTER_LINEAR).ravel().astype(np.float64) for each in (one, other)]
    if min(each.std() for each in flat) == 0:
        return float("nan")
    return float(np.corrcoef(*flat)[0, 1])


def agreement(samples: Sequence[PairedSample], layers: Sequence[tuple[str, str]]) -> list[tuple[str, list[float], int]]:
    """Return (forgery, mean correlation per pair of layers, samples) for each forgery and, last, for all."""
    values = np.array([sample.correlation[pair] for sample in samples for pair in layers])
    values = values.reshape(len(samples), len(layers))
    rows = []
    for name, members in by_forgery([sample.a.forgery for sample in samples]):
        finite = [column[np.isfinite(column)] for column in values[members].T]
        rows.append((name, [float(np.mean(c)) if len(c) else float("nan") for c in finite], int(members.sum())))
    return rows


def by_forgery(forgeries: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Return (name, members (N,) bool) for each forgery and, last, for all."""
    names = np.array(forgeries, dtype=object)
    groups = [(name, names == name) for name in dict.fromkeys(forgeries)]
    return [*groups, ("all", np.ones(len(names), dtype=bool))]


def write_comparison(run_a: Path, run_b: Path, output: Path, samples_at_most: int, anonymous: bool = False) -> None:
    """Write the folder, which must not be there; it appears whole. Raises InputError.

    `anonymous`: for others, without the runs' folders, without paths and hashes.
    """
    require_jinja2("the comparison")
    if output.exists():
        raise InputError(f"--output {output}: exists already: give a new folder")
    a, b = read_run(run_a, READ), read_run(run_b, READ)
    frames = paired_frames(a, b)
    partial = partial_folder(output, "--output")
    (partial / IMAGES).mkdir()
    write_table(partial / FRAMES, COLUMNS, [row for one in frames for row in _rows(one, anonymous)])
    views = [_dataset(a, b, one, partial, samples_at_most) for one in frames]
    (partial / PAGE).write_text(_rendered(a, b, views, anonymous), encoding="utf-8", errors="backslashreplace")
    replace_folder(partial, output)
    differing = sum(int(one.differ.sum()) for one in frames)
    print(f"{output / PAGE}: {sum(len(one.path) for one in frames)} frames in common, {differing} decided differently")


def _rows(frames: PairedFrames, anonymous: bool) -> list[tuple[object, ...]]:
    videos, labels, differ = [name for _, name in frames.video], frames.label.tolist(), frames.differ.tolist()
    scores = ([f"{score:.9g}" for score in column] for column in (frames.prob_a, frames.prob_b))
    names = [frames.name] * len(frames.path)
    paths = frames.path
    if anonymous:
        paths = [shared_path(*video, path) for video, path in zip(frames.video, paths, strict=True)]
    return list(zip(paths, names, frames.forgery, videos, labels, *scores, differ, strict=True))


def _rendered(a: RunOnDisk, b: RunOnDisk, views: Sequence[dict[str, Any]], anonymous: bool) -> str:
    from markupsafe import Markup

    both = [dict(facts(without_names(run) if anonymous else run)) for run in (a, b)]
    unfinished = [letter for letter, run in zip("AB", (a, b), strict=True) if not run.finished]
    names = dict.fromkeys([*both[0], *both[1]])
    return template("compare.html.j2").render(
        style=Markup(joined("css", STYLES)),  # our own files, not escaped
        runs=("", "") if anonymous else (str(a.folder), str(b.folder)),
        unfinished=unfinished,
        facts=[(name, both[0].get(name, "–"), both[1].get(name, "–")) for name in names],
        datasets=views,
        frames_file=FRAMES,
    )


def _dataset(a: RunOnDisk, b: RunOnDisk, frames: PairedFrames, folder: Path, most: int) -> dict[str, Any]:
    """Return the template's values for one dataset, and write its images."""
    of_a, of_b = (next(data for data in run.datasets if data.name == frames.name) for run in (a, b))
    layers = paired_layers(a.layers, b.layers)
    samples = paired_samples(of_a, of_b, layers)
    cards = [_card(pair, layers, folder) for pair in samples[:most]]
    return {
        "name": frames.name, "frames": len(frames.path), "only": (frames.only_a, frames.only_b),
        "metrics": [_metric_row(one) for one in metric_differences(frames)], "decisions": _decisions(frames),
        "layers": [_pair_name(pair) for pair in layers],
        "agreement": [(name, [*map(_number, means)], count) for name, means, count in agreement(samples, layers)],
        "regions": _regions(a, b, frames.name, layers),
        "samples": [card for card in cards if card], "explained": len(samples),
    }  # fmt: skip


def _metric_row(one: MetricDifference) -> tuple[str, str, str, str, str]:
    """Return name, A, B, B − A, its interval, and whether that excludes 0."""
    interval = f"{one.low:+.4f} to {one.high:+.4f}" + ("" if one.low <= 0 <= one.high else ", excludes 0")
    if math.isnan(one.low):
        interval = "too few videos"
    return one.name, _number(one.a, ".4f"), _number(one.b, ".4f"), _number(one.b - one.a, "+.4f"), interval


def _decisions(frames: PairedFrames) -> list[tuple[str, int, int, int]]:
    """Return forgery, frames, frames that only A predicts right, and only B; the last row is for all."""
    right_a = (frames.prob_a > THRESHOLD) == (frames.label == 1)
    only_a, only_b = frames.differ & right_a, frames.differ & ~right_a
    return [
        (name, int(members.sum()), int((only_a & members).sum()), int((only_b & members).sum()))
        for name, members in by_forgery(frames.forgery)
    ]


def _regions(a: RunOnDisk, b: RunOnDisk, dataset: str, layers: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return layer, forgery, outcome, region, preference in A and in B: rows in both runs' `regions.csv`."""
    of_a, of_b = (_region_table(run.folder / REGIONS_FILE, dataset) for run in (a, b))
    return [
        (_pair_name(pair), forgery, outcome, region, value, of_b[forgery, outcome, pair[1], region])
        for pair in layers
        for (forgery, outcome, layer, region), value in of_a.items()
        if layer == pair[0] and (forgery, outcome, pair[1], region) in of_b
    ]


def _region_table(path: Path, dataset: str) -> dict[tuple[str, str, str, str], str]:
    """Read (forgery, outcome, layer, region) → preference; empty if the run has none."""
    if not path.is_file():
        return {}
    return {
        (row["forgery"], row["outcome"], row["layer"], row["region"]): row["preference"]
        for row in read_table(path, ("forgery", "outcome", "layer", "region", "preference", "dataset"))
        if row["dataset"] == dataset and row["preference"]
    }


def _card(pair: PairedSample, layers: Sequence[tuple[str, str]], folder: Path) -> dict[str, Any] | None:
    """Return a card: the two runs' results for one frame, and its images' relative paths; None without images."""
    stem = f"{pair.a.dataset}_{pair.a.index}".replace("/", "_")
    try:
        drawn = overlays(pair.a), overlays(pair.b)
    except UnreadableImage:
        return None
    images = {"original": drawn[0][0]}
    for i, names in enumerate(layers):
        for run, (_, of_run), name in zip("ab", drawn, names, strict=True):
            images[f"{i}{run}"] = of_run[name]
    address = {name: f"{IMAGES}/{stem}_{name}.webp" for name in images}
    for name, image in images.items():
        small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        (folder / address[name]).write_bytes(encode(small, "webp"))
    titles = [f"{_pair_name(one)}, correlation {_number(pair.correlation[one])}" for one in layers]
    sample, truth = pair.a, CLASS_NAMES[pair.a.label].lower()
    return {
        "title": " · ".join([sample.forgery, f"video {sample.video}", Path(sample.path).name, truth]),
        "verdicts": [f"{'✓' if one.correct else '✗'} fake {one.prob_fake:.3f}" for one in (pair.a, pair.b)],
        "differs": pair.differs, "original": address["original"],
        "layers": [(title, address[f"{i}a"], address[f"{i}b"]) for i, title in enumerate(titles)],
    }  # fmt: skip


def _pair_name(pair: tuple[str, str]) -> str:
    return pair[0] if pair[0] == pair[1] else f"{pair[0]} | {pair[1]}"


def _number(value: float, form: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(value, form)
