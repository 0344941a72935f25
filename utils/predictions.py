"""What the detector said of every frame: a table on disk that grows batch by batch, and its columns for the metrics."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Sequence

import numpy as np
from torch import Tensor

from utils.detection_metrics import DetectionMetrics, detection_metrics
from utils.errors import RunError
from utils.frames import Frame
from utils.own_files import new_file
from utils.plain_words import AS_IT_CAME, write_row

COLUMNS = (
    "index", "path", "dataset", "forgery", "video", "label", "prob_fake", "logit_real", "logit_fake", "predicted",
    "correct",
)  # fmt: skip
CLASS_NAMES = ("Real", "Fake")


class Predictions:
    """Predictions of one data set: rows go to `<folder>/predictions.csv`, numbers stay in columns of NumPy.

    The table stands under a `.partial` name until `close`, so that a finished name means a finished table. Memory is 13
    bytes a frame, beside the frames themselves.
    """

    def __init__(self, frames: Sequence[Frame], folder: Path) -> None:
        self.frames = frames
        self.logits = np.full((len(frames), 2), np.nan, dtype=np.float32)
        self.prob_fake = np.full(len(frames), np.nan, dtype=np.float32)
        self.label = np.fromiter((frame.label for frame in frames), dtype=np.int8, count=len(frames))
        self._path = folder / "predictions.csv"
        self._partial = folder / "predictions.csv.partial"
        self._file = io.TextIOWrapper(new_file(self._partial), encoding="utf-8", errors=AS_IT_CAME, newline="")
        write_row(self._file, COLUMNS)

    def add(self, frames: Sequence[Frame], logits: Tensor, prob_fake: Tensor) -> None:
        """One batch: frames beside `logits` (B, 2), `prob_fake` (B,). Raises RunError where a logit is not finite."""
        logits_np, prob_np = logits.float().cpu().numpy(), prob_fake.float().cpu().numpy()
        for frame, (real, fake), prob in zip(frames, logits_np, prob_np):
            if not (np.isfinite(real) and np.isfinite(fake)):
                raise RunError(
                    f"the detector's logits for {frame.path} are {real} and {fake}: check the weights, or use fp32"
                )
            self.logits[frame.index] = real, fake
            self.prob_fake[frame.index] = prob
            write_row(self._file, self._row(frame))

    def close(self) -> None:
        """Finish the table on disk."""
        self._file.close()
        self._partial.replace(self._path)

    def _row(self, frame: Frame) -> list[object]:
        real, fake = self.logits[frame.index]
        # Nine digits give a float32 back exactly.
        numbers = [f"{value:.9g}" for value in (self.prob_fake[frame.index], real, fake)]
        predicted = self.predicted(frame.index)
        return [
            frame.index, frame.path, frame.dataset, frame.forgery, frame.video, frame.label, *numbers, predicted,
            predicted == frame.label,
        ]  # fmt: skip

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: frames that were readable, and so have a prediction."""
        return ~np.isnan(self.prob_fake)

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
