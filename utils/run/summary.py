"""What a finished run tells: `metrics.json`, the table on the terminal, what the user should know, the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from utils.errors import RunError
from utils.run.detection_metrics import DetectionMetrics
from utils.run.explainer import Counts


class DatasetResult(NamedTuple):
    """One data set evaluated."""

    name: str
    metrics: DetectionMetrics
    unreadable: int
    counts: Counts


def metrics_json(result: DatasetResult) -> dict[str, Any]:
    """The entry of one data set in `metrics.json`; what one class alone cannot give is null, with a note."""
    metrics = result.metrics
    entry: dict[str, Any] = {
        "acc": metrics.acc,
        "auc": metrics.auc,
        "eer": metrics.eer,
        "ap": metrics.ap,
        "video_auc": metrics.video_auc,
        "frames": metrics.frames,
        "videos": metrics.videos,
        "unreadable": result.unreadable,
    }
    return {**entry, "note": metrics.note} if metrics.note else entry


def counts_json(counts: Counts) -> dict[str, Any]:
    """The entry of one data set under `heatmaps` in the manifest."""
    return {
        "heatmaps": counts.heatmaps,
        "empty_maps": counts.empty_maps,
        "non_finite": counts.non_finite,
        "vanished": [{"index": index, "reason": reason} for index, reason in counts.vanished],
    }


def metrics_table(results: Sequence[DatasetResult]) -> str:
    """One line a data set, for the terminal."""
    width = max(len("data set"), *(len(result.name) for result in results))
    lines = [f"{'data set':<{width}}     ACC     AUC     EER      AP  video AUC  frames  videos  unreadable"]
    for result in results:
        m = result.metrics
        numbers = "".join(f"{'–' if value is None else f'{value:.4f}':>8}" for value in (m.acc, m.auc, m.eer, m.ap))
        video = "–" if m.video_auc is None else f"{m.video_auc:.4f}"
        lines.append(f"{result.name:<{width}}{numbers}{video:>11}{m.frames:>8}{m.videos:>8}{result.unreadable:>12}")
    return "\n".join(lines)


def summary(
    results: Sequence[DatasetResult], output_dir: Path, explained: str = "", random_weights: bool = False
) -> str:
    """Where the outputs are and what the user should know of them. `explained`: what kind of sample, "" for none."""
    lines = []
    for result in results:
        counts = result.counts
        if explained:
            lines.append(f"{result.name}: heatmaps of {counts.heatmaps} {explained} in {output_dir / result.name}")
        for layer, count in counts.empty_maps.items():
            if count:
                lines.append(f"{result.name}: {layer}: {count} of {counts.heatmaps} maps are empty")
        if counts.non_finite:
            lines.append(f"{result.name}: no heatmap (NaN or infinite) for samples {counts.non_finite}")
        if counts.vanished:
            lines.append(f"{result.name}: no heatmap for samples that vanished meanwhile: {counts.vanished}")
        if result.unreadable:
            listed = output_dir / result.name / "unreadable.csv"
            lines.append(f"{result.name}: {result.unreadable} frames could not be read, listed in {listed}")
        if result.metrics.note:
            lines.append(f"{result.name}: {result.metrics.note}")
    if random_weights:
        lines.append("random weights: this detector was never trained, its scores and maps mean nothing")
    lines.append(f"metrics and manifest: {output_dir}")
    return "\n".join(lines)


def exit_code(metrics: Mapping[str, Any], heatmaps: Mapping[str, Any], max_unreadable: float) -> int:
    """0, judged by `metrics.json` and the manifest's `heatmaps`.

    Raises RunError for what makes a finished run a failed one.
    """
    for name, entry in metrics.items():
        total = entry["frames"] + entry["unreadable"]
        if entry["unreadable"] > max_unreadable * total:
            raise RunError(
                f"data set {name}: {entry['unreadable']} of {total} frames could not be read, more than"
                f" --max_unreadable {100 * max_unreadable:g}%; everything else was written"
            )
    for name, entry in heatmaps.items():
        if entry["vanished"]:
            first = entry["vanished"][0]
            raise RunError(
                f"data set {name}: {len(entry['vanished'])} frames could be read at first but no longer when their"
                f" heatmaps were due, first sample {first['index']} ({first['reason']}); everything else was written"
            )
    for name, entry in metrics.items():
        if entry["auc"] is None:
            raise RunError(f"data set {name}: {entry['note']}; everything else was written")
    return 0
