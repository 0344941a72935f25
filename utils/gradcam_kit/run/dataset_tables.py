"""The tables of one dataset once it is evaluated, and the count of its heatmaps."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..base.errors import RunError
from ..data.clips import CutClips, write_clips
from ..data.gaps import forgery_gaps, is_absent, write_gaps
from ..store.database import RunDatabase
from ..store.manifest import HeatmapCounts, Vanished
from ..store.run_folder import RunFolder
from ..store.sample import Sample
from ..store.sample_writer import NON_FINITE
from ..store.tables import CLIPS, GAPS, write_dataset_tables
from .predictions import Predictions
from .summary import DatasetSummary


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
        content = (run.path / name / GAPS).read_bytes()
        run.database.put("measurement", [(name, GAPS, content)], run.key)
        run.database.commit()
    if cut is not None:
        write_clips(run.path / name / CLIPS, cut)
        content = (run.path / name / CLIPS).read_bytes()
        run.database.put("measurement", [(name, CLIPS, content)], run.key)
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
