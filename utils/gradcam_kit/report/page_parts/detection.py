"""How good the detector is, of frames and of videos: ROC curves, what a threshold decides, a table by forgery."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...base.decision import THRESHOLD
from ...judge.forgeries import details, group_of
from ...store.read_run import DatasetOnDisk, frame_rows

LEVELS = ("frames", "videos")
RATES = (("auc", "AUC"), ("ap", "AP"), ("eer", "EER"), ("acc", "ACC"))
FEWEST = 5  # of each class, for a curve
FEWEST_SCORES = 10  # for a histogram
BINS = 20
CURVE_POINTS = 200
QUANTILES = 100  # of the scores, among the thresholds: a detector's scores crowd at the ends


class Scores(NamedTuple):
    """What is judged: N frames or videos. `label` 0 (real) or 1 (fake)."""

    score: np.ndarray
    label: np.ndarray
    forgery: np.ndarray


def scores_of(data: DatasetOnDisk) -> tuple[dict[str, Scores], list[tuple[str, str]]]:
    """Level → its scores; and the video of each frame. A video's score is the mean of its frames'."""
    number: dict[tuple[str, str], int] = {}
    of, scores, labels = array("q"), array("d"), array("q")  # no lists: there may be millions
    for row in frame_rows(data.folder):
        of.append(number.setdefault((row["forgery"], row["video"]), len(number)))
        scores.append(row["prob_fake"])
        labels.append(row["label"])
    score, label, videos = np.array(scores), np.array(labels), list(number)
    keys = [videos[i] for i in of]
    forgery = np.array([forgery for forgery, _ in keys], dtype=object)
    frames = Scores(score, label, forgery)
    if not videos:
        return {"frames": frames, "videos": frames}, keys
    places = np.unique(np.array(of), return_index=True)[1]  # of each video's first frame
    order = np.argsort(
        -np.array(list({i: place for place, i in enumerate(of)}.values()))
    )  # by the last frame, descending
    mean = np.bincount(of, weights=score) / np.bincount(of)
    of_videos = Scores(mean[order], label[places][order], forgery[places][order])
    return {"frames": frames, "videos": of_videos}, keys


def detection_views(datasets: Sequence[DatasetOnDisk]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """For each dataset its curves and tables; and for the page's script how many score above each threshold."""
    found = [scores_of(data) for data in datasets]
    grid = thresholds([scores[level].score for scores, _ in found for level in LEVELS])
    views = []
    known: Mapping[str, Any]
    for data, (scores, videos) in zip(datasets, found, strict=True):
        known, frames = data.metrics or {}, scores["frames"]
        if "by_forgery" not in known:  # an unfinished run, or one of an earlier version
            known = details(frames.score.tolist(), frames.label.tolist(), frames.forgery.tolist(), videos)
        auc: dict[str, float | None] = {"frames": (data.metrics or known).get("auc"), "videos": known.get("video_auc")}
        levels = [_level(level, scores, auc[level], known) for level in LEVELS]
        views.append({"name": data.name, "levels": levels})
    counts = [{level: above(scores[level], grid) for level in LEVELS} for scores, _ in found]
    return views, {"thresholds": grid.tolist(), "usual": THRESHOLD, "datasets": counts}


def thresholds(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Ascending, within [0, 1]: every hundredth, and quantiles of the scores."""
    every = np.concatenate([*scores, [0.0]])
    shares = np.quantile(every, np.linspace(0, 1, QUANTILES))
    return np.unique([float(f"{value:.5g}") for value in (*np.linspace(0, 1, 101), *shares)])


def above(scores: Scores, grid: np.ndarray) -> dict[str, Any]:
    """Of the reals, and of the fakes of each forgery: how many there are, then how many score above each threshold."""

    def counted(of: np.ndarray) -> list[int]:
        ordered = np.sort(scores.score[of])
        return [len(ordered), *(len(ordered) - np.searchsorted(ordered, grid, side="right")).tolist()]

    fakes = scores.label == 1
    names = dict.fromkeys(scores.forgery[fakes].tolist())
    return {"real": counted(~fakes), "fakes": [[name, counted(fakes & (scores.forgery == name))] for name in names]}


def _level(level: str, scores: Mapping[str, Scores], auc: float | None, known: Mapping[str, Any]) -> dict[str, Any]:
    prefix, members = "" if level == "frames" else "video_", known["by_forgery"]
    sizes = [int((scores[one].label == 1).sum()) for one in LEVELS]
    rows: list[tuple[object, ...]] = [("all fakes", "total", _cells(known, prefix), *sizes)]
    groups = [*known["groups"], ""]
    of_group: dict[str, list[str]] = {group: [] for group in groups}
    for name in members:
        of_group[group_of(name)].append(name)
    for group, names in of_group.items():
        if group:
            rows.append((f"{group}: mean", "group", _cells(known["groups"][group], prefix), "", ""))
        for name in names:
            one = members[name]
            rows.append((name, "member" * bool(group), _cells(one, prefix), one["frames"], one["videos"]))
    at = scores[level]
    return {
        "level": level, "counts": [int((at.label == number).sum()) for number in (0, 1)], "rows": rows,
        "places": {name: i for i, name in enumerate(members)}, "roc": roc_points(at.label, at.score),
        "auc": "" if auc is None else f", AUC {auc:.4f}", "fewest": FEWEST,
        "bars": histogram_bars(at.label, at.score) if len(at.label) >= FEWEST_SCORES else None,
    }  # fmt: skip


def _cells(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    """Value and interval of each rate, as text."""
    cells = []
    for rate, _ in RATES:
        value, low, high = (values.get(f"{prefix}{rate}{end}") for end in ("", "_low", "_high"))
        interval = "" if low is None or high is None else f"{low:.3f} – {high:.3f}"
        cells.append(("–" if value is None else f"{value:.3f}", interval))
    return cells


def roc_points(label: np.ndarray, score: np.ndarray) -> str:
    """ROC curve as SVG points in a square of 100, false positive rate to the right; empty with too few of a class."""
    from sklearn.metrics import roc_curve

    if min(int((label == number).sum()) for number in (0, 1)) < FEWEST:
        return ""
    false_positive, true_positive, _ = roc_curve(label, score)
    chosen = np.unique(np.linspace(0, len(false_positive) - 1, CURVE_POINTS).round().astype(int))
    return " ".join(f"{100 * false_positive[i]:.2f},{100 - 100 * true_positive[i]:.2f}" for i in chosen)


def histogram_bars(label: np.ndarray, prob_fake: np.ndarray) -> dict[str, list[tuple[float, float, float, str]]]:
    """Share of each class's scores in each bin of fake probability; the highest bar is 100 high."""
    edges = np.linspace(0, 1, BINS + 1)
    shares = {}
    for kind, number in (("real", 0), ("fake", 1)):
        scores = prob_fake[label == number]
        if len(scores):
            shares[kind] = np.histogram(scores, edges)[0] / len(scores)
    highest = max((float(share.max()) for share in shares.values()), default=0.0) or 1.0
    width = 100 / BINS / 2 - 0.4
    return {
        kind: [
            (100 * edges[i] + (width + 0.4 if kind == "fake" else 0.2), width, 100 * value / highest,
             f"{kind}: {100 * value:.1f} % between {edges[i]:.2f} and {edges[i + 1]:.2f}")
            for i, value in enumerate(share)
        ]
        for kind, share in shares.items()
    }  # fmt: skip
