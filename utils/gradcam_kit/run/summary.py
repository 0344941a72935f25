"""The end of a dataset and of the run: tables, metrics, the text on the terminal, success or failure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import RunError
from ..base.text import printable
from ..data.clips import CutClips, write_clips
from ..data.gaps import ForgeryGaps, forgery_gaps, is_absent, write_gaps
from ..judge.check import WORDS
from ..judge.detection_metrics import DetectionMetrics
from ..judge.verdict import Choice, choice_lines, judgements
from ..settings.run_options import ExportOptions
from ..store.database import RunDatabase
from ..store.manifest import HeatmapCounts, Vanished
from ..store.run_folder import RunFolder
from ..store.sample import Sample
from ..store.sample_writer import NON_FINITE
from ..store.tables import CLIPS, GAPS, UNREADABLE, write_dataset_tables, write_run_tables
from .exports import write_exports
from .predictions import Predictions


class DatasetSummary(NamedTuple):
    """One evaluated dataset."""

    name: str
    metrics: DetectionMetrics
    unreadable: int
    counts: HeatmapCounts
    gaps: Sequence[ForgeryGaps] = ()
    cut: CutClips | None = None  # for a clip detector; its metrics are per clip

    @property
    def absent(self) -> int:
        """The number of unreadable frames whose folder is missing."""
        return sum(one.absent_frames for one in self.gaps)


def write_summary(
    run: RunFolder, predictions: Predictions, counts: HeatmapCounts, cut: CutClips | None = None
) -> DatasetSummary:
    """Write the tables of an evaluated dataset. Raises RunError if none of its frames could be read."""
    frames, unreadable = predictions.frames, predictions.unreadable
    name = frames[0].dataset
    if not predictions.seen.any():
        reason = f" ({unreadable[0]})" if unreadable else ""
        raise RunError(
            f"dataset {name}: none of its {len(frames)} frames could be read, first {frames[0].path}{reason}"
        )
    absent = [index for index, reason in unreadable.items() if is_absent(reason)]
    gaps = forgery_gaps(frames, absent, unreadable.keys() - set(absent))
    if gaps:
        write_gaps(run.path / name / GAPS, gaps)
    if cut is not None:
        write_clips(run.path / name / CLIPS, cut)
    for file, there in ((GAPS, gaps), (CLIPS, cut)):
        if there:
            run.database.put("measurement", [(name, file, (run.path / name / file).read_bytes())], run.key)
    run.database.commit()
    write_dataset_tables(run.database, name, run.path / name)
    return DatasetSummary(name, predictions.metrics(), len(unreadable), counts, gaps, cut)


def counts_of(database: RunDatabase, dataset: str, chosen: Sequence[int]) -> HeatmapCounts:
    """Count the results of explaining the frames `chosen`, and delete samples of other frames."""
    counts, wanted, others = HeatmapCounts(), set(chosen), []
    for _, index, facts, _, lost, _ in database.rows("sample", "WHERE dataset = ?", dataset):
        if index not in wanted:
            others.append(index)
        elif lost == NON_FINITE:
            counts.non_finite.append(index)
        elif lost:
            counts.vanished.append(Vanished(index, lost))
        else:
            counts.add_sample(Sample.from_json(json.loads(facts)).layers)
    for table in ("sample", "map"):
        database.forget(table, dataset, others)
    return counts


def metrics_json(dataset: DatasetSummary) -> dict[str, Any]:
    """Return a dataset's entry in `metrics.json`. Metrics that need both classes are null, with a note."""
    values = asdict(dataset.metrics)
    remarks = {name: text for name in ("note", "warning") if (text := values.pop(name))}
    details = {name: value for name, value in values.pop("details").items() if name not in values}
    cut = dataset.cut
    if cut is not None:
        of = {"clip_size": cut.size, "clips": len(cut.clips), "short_videos": len(cut.short)}
        remarks = {**of, "frames_in_no_clip": cut.unseen, "frames_there": cut.frames, **remarks}
    return {**values, "unreadable": dataset.unreadable, "absent": dataset.absent, **remarks, **details}


def metrics_table(datasets: Sequence[DatasetSummary]) -> str:
    """Return the table for the terminal, one line per dataset."""
    width = max(len("dataset"), *(len(dataset.name) for dataset in datasets))
    unit = " clips" if datasets[0].cut else "frames"
    lines = [f"{'dataset':<{width}}     ACC     AUC     EER      AP  video AUC  {unit}  videos  unreadable"]
    for dataset in datasets:
        m = dataset.metrics
        *frame_numbers, video = ("–" if x is None else f"{x:.4f}" for x in (m.acc, m.auc, m.eer, m.ap, m.video_auc))
        numbers = "".join(f"{number:>8}" for number in frame_numbers)
        lines.append(f"{dataset.name:<{width}}{numbers}{video:>11}{m.frames:>8}{m.videos:>8}{dataset.unreadable:>12}")
    return "\n".join(lines)


def finish_run(
    folder: RunFolder,
    results: Sequence[DatasetSummary],
    choice: Choice | None,
    views: ExportOptions,
    max_unreadable: float,
) -> None:
    """Write metrics, manifest, summary and report. Raises RunError if the finished run counts as failed."""
    metrics = {result.name: metrics_json(result) for result in results}
    heatmaps = {result.name: result.counts for result in results}
    folder.finish(metrics, heatmaps, choice)
    write_run_tables(folder.database, folder.path)
    print(metrics_table(results))
    print(summary(folder, results, choice))
    print("\n".join(write_exports(folder.path, views)))
    folder.record(exported=True)
    check_finished(metrics, heatmaps, max_unreadable)


def summary(folder: RunFolder, datasets: Sequence[DatasetSummary], choice: Choice | None) -> str:
    """Return the notes for the terminal: where the outputs are, and what is notable."""
    explained = ""
    if folder.manifest.config.get("gradcam_enabled"):
        of_all = folder.manifest.options["save_all"] or folder.manifest.options.get("select") == "mixed"
        explained = "samples" if of_all else "wrong predictions"
    lines = [] if choice is None else [*choice_lines(choice), *judgements(choice)]
    for dataset in datasets:
        lines += [f"{dataset.name}: {line}" for line in _notable(dataset, folder.path / dataset.name, explained)]
        if dataset.metrics.warning:
            lines.append(f"warning: {dataset.name}: {dataset.metrics.warning}")
    if folder.manifest.weights is None:
        lines.append("random weights: this detector was never trained, so its scores and maps mean nothing")
    lines.append(f"metrics and manifest: {folder.path}")
    return "\n".join(lines)


def _notable(dataset: DatasetSummary, folder: Path, explained: str) -> Iterator[str]:
    counts = dataset.counts
    if explained:
        number = f"{counts.heatmaps} of {dataset.metrics.frames}" if explained == "samples" else counts.heatmaps
        yield f"heatmaps of {number} {explained} in {folder}"
    for layer, count in counts.empty_maps.items():
        if count:
            yield f"{layer}: {count} of {counts.heatmaps} maps are empty"
    if counts.checks:
        verdicts = ", ".join(f"{counts.checks.get(word, 0)} {word}" for word in WORDS)
        yield f"map check: {verdicts} (of {sum(counts.checks.values())})"
    if counts.non_finite:
        yield f"no heatmap (NaN or infinite) for samples {counts.non_finite}"
    if counts.vanished:
        gone = [astuple(one) for one in counts.vanished]
        yield f"no heatmap for samples that vanished or changed during the run: {gone}"
    if dataset.cut is not None:
        yield from dataset.cut.lines()
        yield (
            "ACC, AUC, EER and AP are per clip, as in DeepfakeBench, whose video AUC for such a detector is the same as"
            " its AUC; video AUC here uses each video's mean probability"
        )
    if dataset.unreadable:
        what = "frames" if dataset.cut is None else "clips"
        yield f"{dataset.unreadable} {what} could not be read, listed in {folder / UNREADABLE}"
    yield from (printable(gaps.line()) for gaps in dataset.gaps)
    if dataset.metrics.note:
        yield dataset.metrics.note


def check_finished(metrics: Mapping[str, Any], heatmaps: Mapping[str, HeatmapCounts], max_unreadable: float) -> None:
    """Raise RunError if a finished run counts as failed: too many frames were unreadable, or samples vanished.

    Frames of a missing folder do not count, because they were reported as missing.
    """
    for name, entry in metrics.items():
        unreadable = entry["unreadable"] - entry.get("absent", 0)  # earlier versions lack it
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
                f"dataset {name}: {len(counts.vanished)} frames vanished or changed between prediction and"
                f" explanation, first sample {first.index} ({first.reason}); everything else was written"
            )
