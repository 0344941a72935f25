"""Summary of a finished run: `metrics.json`, the table on the terminal, notes for the person, success or failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import RunError
from ..base.text import printable, size_text
from ..data.gaps import ForgeryGaps
from ..judge.check import WORDS
from ..judge.detection_metrics import DetectionMetrics
from ..judge.verdict import Choice, judgements, printed
from ..store.bundles import PER_BUNDLE
from ..store.journal import UNREADABLE
from ..store.manifest import HeatmapCounts
from ..store.sample_writer import expected_output


class DatasetSummary(NamedTuple):
    """One dataset evaluated."""

    name: str
    metrics: DetectionMetrics
    unreadable: int
    counts: HeatmapCounts
    gaps: Sequence[ForgeryGaps] = ()

    @property
    def absent(self) -> int:
        """The frames among the unreadable ones whose folder is not there."""
        return sum(one.absent_frames for one in self.gaps)


def metrics_json(dataset: DatasetSummary) -> dict[str, Any]:
    """The entry of one dataset in `metrics.json`; what one class alone cannot give is null, with a note."""
    metrics = dataset.metrics
    entry: dict[str, Any] = {
        "acc": metrics.acc,
        "auc": metrics.auc,
        "eer": metrics.eer,
        "ap": metrics.ap,
        "video_auc": metrics.video_auc,
        "frames": metrics.frames,
        "videos": metrics.videos,
        "unreadable": dataset.unreadable,
        "absent": dataset.absent,
    }
    said = {"note": metrics.note, "warning": metrics.warning}
    return {**entry, **{key: text for key, text in said.items() if text}}


def metrics_table(datasets: Sequence[DatasetSummary]) -> str:
    """One line per dataset, for the terminal."""
    width = max(len("dataset"), *(len(dataset.name) for dataset in datasets))
    lines = [f"{'dataset':<{width}}     ACC     AUC     EER      AP  video AUC  frames  videos  unreadable"]
    for dataset in datasets:
        m = dataset.metrics
        numbers = "".join(f"{'–' if value is None else f'{value:.4f}':>8}" for value in (m.acc, m.auc, m.eer, m.ap))
        video = "–" if m.video_auc is None else f"{m.video_auc:.4f}"
        lines.append(f"{dataset.name:<{width}}{numbers}{video:>11}{m.frames:>8}{m.videos:>8}{dataset.unreadable:>12}")
    return "\n".join(lines)


def summary(
    datasets: Sequence[DatasetSummary],
    output_dir: Path,
    explained: str = "",
    random_weights: bool = False,
    choice: Choice | None = None,
) -> str:
    """Where the outputs are and what is notable about them. `explained`: which samples were, "" for none."""
    lines = [] if choice is None else [*printed(choice), *judgements(choice)]
    for dataset in datasets:
        counts = dataset.counts
        if explained:
            number = f"{counts.heatmaps} of {dataset.metrics.frames}" if explained == "samples" else counts.heatmaps
            lines.append(f"{dataset.name}: heatmaps of {number} {explained} in {output_dir / dataset.name}")
        for layer, count in counts.empty_maps.items():
            if count:
                lines.append(f"{dataset.name}: {layer}: {count} of {counts.heatmaps} maps are empty")
        if counts.checks:
            lines.append(f"{dataset.name}: {checks_text(counts.checks)}")
        if counts.non_finite:
            lines.append(f"{dataset.name}: no heatmap (NaN or infinite) for samples {counts.non_finite}")
        if counts.vanished:
            lines.append(
                f"{dataset.name}: no heatmap for samples that vanished or were replaced meanwhile:"
                f" {[astuple(one) for one in counts.vanished]}"
            )
        if dataset.unreadable:
            listed = output_dir / dataset.name / UNREADABLE
            lines.append(f"{dataset.name}: {dataset.unreadable} frames could not be read, listed in {listed}")
        lines += [printable(f"{dataset.name}: {one.line()}") for one in dataset.gaps]
        if dataset.metrics.note:
            lines.append(f"{dataset.name}: {dataset.metrics.note}")
        if dataset.metrics.warning:
            lines.append(f"warning: {dataset.name}: {dataset.metrics.warning}")
    if random_weights:
        lines.append("random weights: this detector was never trained, its scores and maps mean nothing")
    lines.append(f"metrics and manifest: {output_dir}")
    return "\n".join(lines)


def checks_text(checks: Mapping[str, int]) -> str:
    """`of 50 maps 46 are supported, 3 weak, 1 an artefact`, by word."""
    counted = [f"{checks.get(word, 0)} {word}" for word in WORDS]
    return f"of {sum(checks.values())} maps {', '.join(counted)}"


def flood(
    samples: int, layers: int, resolution: int, image_format: str, save_raw: bool, output_dir: Path, bundle: bool
) -> str:
    """What is about to be written, in one line."""
    files, size = expected_output(samples, layers, resolution, image_format, save_raw)
    most = f"at most {samples:,} samples with {layers} {'map' if layers == 1 else 'maps'} each"
    packed = f", packed into {-(-samples // PER_BUNDLE):,} at the end" if bundle else ""
    return f"heatmaps: {most}: up to {files:,} files{packed}, about {size_text(size)}, in {output_dir}"


def check_finished(metrics: Mapping[str, Any], heatmaps: Mapping[str, HeatmapCounts], max_unreadable: float) -> None:
    """Raises RunError for what makes a finished run a failed one, by `metrics.json` and the manifest's `heatmaps`.

    Frames whose folder is not there do not count: that part of the dataset is not at hand, and was said to be missing.
    """
    for name, entry in metrics.items():
        unreadable = entry["unreadable"] - entry.get("absent", 0)  # earlier versions do not have it
        total = entry["frames"] + unreadable
        if unreadable > max_unreadable * total:
            raise RunError(
                f"dataset {name}: {unreadable} of {total} frames could not be read, more than"
                f" --max_unreadable {100 * max_unreadable:g}%; everything else was written"
            )
    for name, counts in heatmaps.items():
        if counts.vanished:
            first = counts.vanished[0]
            raise RunError(
                f"dataset {name}: {len(counts.vanished)} frames could be read at first but were gone or replaced when"
                f" their heatmaps were due, first sample {first.index} ({first.reason}); everything else was written"
            )
