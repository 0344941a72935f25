"""What an earlier, interrupted run has left of one dataset, and what is missing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..base.text import printable
from ..data.frame import Frame
from ..data.frame_paths import landmark_path
from ..data.stamps import Stamp, hash_of
from ..store.journal import STAMP, read_rows
from ..store.sample import LayerFacts, Sample
from .predictions import Predictions


class Resume:
    """The state of one dataset's folder.

    `predictions` are those of the journals, and of this run as it goes on; `whole` the samples of which every file was
    there, as it was written, at the start, with their layers. What was damaged, changed or predicted of another file
    counts as missing: `remarks` says so.
    """

    def __init__(self, folder: Path, frames: Sequence[Frame], samples: Mapping[int, Sample], folders: int = 0) -> None:
        """`samples`: those whose files are as they were written, of `folders` that are there."""
        self.predictions = Predictions(frames)
        self._replaced: dict[int, str] = {}
        self._landmarks: list[str] = []
        self._damaged = 0
        self.predictions.restore(self._usable(folder))
        self.whole: dict[int, list[LayerFacts]] = {
            index: sample.layers for index, sample in samples.items() if self._is_of_prediction(index, sample)
        }
        self.remarks = self._remarks(frames[0].dataset if frames else "", folders - len(self.whole))
        self._recorded = self.predictions.done

    def _usable(self, folder: Path) -> Iterator[dict[str, str]]:
        damaged: list[Path] = []
        for row in read_rows(folder, damaged):
            if not self.predictions.belongs(row):
                self._damaged += 1
            elif Stamp.parse(row[STAMP]).fits(row["path"]):
                self._replaced.pop(int(row["index"]), None)
                yield row
            else:
                self._replaced[int(row["index"])] = row["path"]
        self._damaged += len(damaged)

    def _is_of_prediction(self, index: int, sample: Sample) -> bool:
        """Whether a sample shows the prediction that is recorded, and its landmarks are those that are there."""
        mine = self.predictions
        fits = (
            index < len(mine.frames)
            and sample.path == mine.frames[index].path
            and sample.prob_fake == float(mine.prob_fake[index])
            and list(sample.logits) == mine.logits[index].tolist()
        )
        if fits and hash_of(landmark_path(sample.path)) != sample.landmarks_hash:
            self._landmarks.append(landmark_path(sample.path))
            return False
        return fits

    def _remarks(self, dataset: str, samples: int) -> list[str]:
        image, points = (printable(next(iter(paths), "")) for paths in (self._replaced.values(), self._landmarks))
        counts = {
            f"images were replaced since their prediction, first {image}: done again": len(self._replaced),
            f"landmark files were replaced since, first {points}: these samples are done again": len(self._landmarks),
            "rows of the journals were damaged or changed: done again": self._damaged,
            "samples were incomplete, damaged or changed: done again": samples,
        }
        return [f"{dataset}: {count} {text}" for text, count in counts.items() if count > 0]

    def is_recorded(self, indices: Sequence[int]) -> bool:
        """Whether the earlier run has recorded the predictions of all these frames."""
        return bool(self._recorded[list(indices)].all())

    def lacks_sample(self, index: int) -> bool:
        """Whether a frame, if it could be read, has no whole sample from the earlier run."""
        return index not in self.whole and index not in self.predictions.unreadable

    def missing(self, batches: Sequence[Sequence[int]], predictions: bool, samples: bool) -> list[Sequence[int]]:
        """The batches that lack predictions, or samples, as far as either is wanted."""
        return [
            batch for batch in batches
            if (predictions and not self.is_recorded(batch)) or (samples and any(map(self.lacks_sample, batch)))
        ]  # fmt: skip
