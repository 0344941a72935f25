"""What the detector said of every frame: columns in memory, and `predictions.csv` when the data set is done."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from utils.data.frames import Frame
from utils.errors import RunError
from utils.files import whole_file
from utils.results.journal import COLUMNS, REASON
from utils.run.detection_metrics import DetectionMetrics, detection_metrics
from utils.text import AS_IT_CAME, write_row


class Predictions:
    """Predictions of one data set. Memory is 14 bytes a frame, beside the frames themselves.

    Attributes: `logits` (N, 2) and `prob_fake` (N,) float32, NaN where there is none; `label` (N,) int8; `unreadable`:
    index → why the frame could not be read.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.logits = np.full((len(frames), 2), np.nan, dtype=np.float32)
        self.prob_fake = np.full(len(frames), np.nan, dtype=np.float32)
        self.label = np.fromiter((frame.label for frame in frames), dtype=np.int8, count=len(frames))
        self.unreadable: dict[int, str] = {}

    def add(self, frames: Sequence[Frame], logits: Tensor, prob_fake: Tensor) -> None:
        """Frames beside `logits` (B, 2), `prob_fake` (B,). Raises RunError where a logit is not finite."""
        logits_np, prob_np = logits.float().cpu().numpy(), prob_fake.float().cpu().numpy()
        for frame, (real, fake), prob in zip(frames, logits_np, prob_np):
            if not (np.isfinite(real) and np.isfinite(fake)):
                raise RunError(
                    f"the detector's logits for {frame.path} are {real} and {fake}: check the weights, or use fp32"
                )
            self._set(frame.index, real, fake, prob)

    def add_unreadable(self, index: int, reason: str) -> None:
        """A frame that could not be read."""
        self._set(index, np.nan, np.nan, np.nan)
        self.unreadable[index] = reason

    def _set(self, index: int, real: float, fake: float, prob_fake: float) -> None:
        self.logits[index] = real, fake
        self.prob_fake[index] = prob_fake
        self.unreadable.pop(index, None)

    def journal_rows(self, frames: Sequence[Frame]) -> list[list[object]]:
        """What a journal keeps of these frames, each of which was added or is in `unreadable`."""
        return [
            [*_identity(frame), "", "", "", "", "", self.unreadable[frame.index]]
            if frame.index in self.unreadable
            else [*self._row(frame), ""]
            for frame in frames
        ]

    def restore(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Take over rows of journals."""
        for row in rows:
            index = int(row["index"])
            if row[REASON]:
                self.add_unreadable(index, row[REASON])
            else:
                self._set(index, float(row["logit_real"]), float(row["logit_fake"]), float(row["prob_fake"]))

    def write(self, folder: Path) -> None:
        """Write `predictions.csv`, and `unreadable.csv` where there are such frames, each complete or not at all."""
        rows = (self._row(self.frames[int(index)]) for index in np.flatnonzero(self.seen))
        _write_table(folder / "predictions.csv", COLUMNS, rows)
        if self.unreadable:
            reasons = ([i, self.frames[i].path, self.unreadable[i]] for i in sorted(self.unreadable))
            _write_table(folder / "unreadable.csv", ("index", "path", "reason"), reasons)

    def _row(self, frame: Frame) -> list[object]:
        real, fake = self.logits[frame.index]
        # Nine digits give a float32 back exactly.
        numbers = [f"{value:.9g}" for value in (self.prob_fake[frame.index], real, fake)]
        predicted = self.predicted(frame.index)
        return [*_identity(frame), *numbers, predicted, predicted == frame.label]

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: frames that were readable, and so have a prediction."""
        return ~np.isnan(self.prob_fake)

    @property
    def done(self) -> np.ndarray:
        """(N,) bool: frames that have a prediction or are known to be unreadable."""
        done = self.seen
        done[list(self.unreadable)] = True
        return done

    def predicted(self, index: int) -> int:
        """Class of frame `index`: fake where its probability is above one half, as the host counts."""
        return int(self.prob_fake[index] > 0.5)

    def confidence(self, index: int) -> float:
        """Probability of the predicted class."""
        prob = float(self.prob_fake[index])
        return prob if prob > 0.5 else 1.0 - prob

    def metrics(self) -> DetectionMetrics:
        """Metrics over the readable frames; a video is its label's name and its own."""
        seen = np.flatnonzero(self.seen)
        videos = [(self.frames[int(i)].forgery, self.frames[int(i)].video) for i in seen]
        return detection_metrics(self.prob_fake[seen].tolist(), self.label[seen].tolist(), videos)

    def choose(self, count: int | None, mistakes_only: bool, select: str, seed: int) -> list[int]:
        """Indices of the frames to explain, ascending: all, or `count` of them by `select`.

        "confident": the highest probability of the predicted class first; "first": in order; "random": by `seed`.
        """
        predicted = self.prob_fake > 0.5
        wanted = self.seen & (predicted != (self.label > 0)) if mistakes_only else self.seen
        indices = np.flatnonzero(wanted)
        if count is not None and count < len(indices):
            if select == "confident":
                doubt = np.where(predicted, -self.prob_fake, self.prob_fake - 1)[indices]
                indices = indices[np.argsort(doubt, kind="stable")]
            elif select == "random":
                indices = np.random.default_rng(seed).permutation(indices)
            indices = np.sort(indices[:count])
        return [int(index) for index in indices]


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[list[object]]) -> None:
    with whole_file(path) as raw:
        table = io.TextIOWrapper(raw, encoding="utf-8", errors=AS_IT_CAME, newline="")
        write_row(table, columns)
        for row in rows:
            write_row(table, row)
        table.detach()  # flushes; `raw` is closed by its own block


def _identity(frame: Frame) -> list[object]:
    return [frame.index, frame.path, frame.dataset, frame.forgery, frame.video, frame.label]
