"""What an earlier, interrupted run has left of one dataset, and what is missing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

from utils.data.frames import Frame
from utils.results.journal import read_rows
from utils.results.sample_folder import LayerFacts
from utils.run.predictions import Predictions


class Resume:
    """The state of one dataset's folder.

    `predictions` are those of the journals, and of this run as it goes on; `whole` the samples of which every file was
    there at the start, with their layers.
    """

    def __init__(self, folder: Path, frames: Sequence[Frame], whole: Mapping[int, list[LayerFacts]]) -> None:
        self.predictions = Predictions(frames)
        self.predictions.restore(read_rows(folder))
        self.whole = whole
        self._recorded = self.predictions.done

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
