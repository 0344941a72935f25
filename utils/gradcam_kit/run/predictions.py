"""Predictions per frame: in memory, in `predictions.csv` when the dataset is done, and what a killed run has left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..base.decision import THRESHOLD, predicted
from ..base.errors import RunError
from ..base.files import write_table
from ..base.text import printable
from ..data.frame import Frame
from ..data.frame_paths import Stamp, hash_of, landmark_path
from ..judge.detection_metrics import DetectionMetrics, detection_metrics
from ..store.journal import COLUMNS, PREDICTIONS, REASON, STAMP, UNREADABLE, read_rows
from ..store.sample import LayerFacts, Sample


class Predictions:
    """Predictions of one dataset. Memory is 22 bytes per frame, beside the frames themselves.

    Attributes: `logits` (N, 2) and `prob_fake` (N,) float32, NaN where there is none; `label` (N,) int8; `content` (N,)
    uint64, the hash of the image that was predicted, 0 where it is not known; `unreadable`: index → why the frame could
    not be read.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.logits = np.full((len(frames), 2), np.nan, dtype=np.float32)
        self.prob_fake = np.full(len(frames), np.nan, dtype=np.float32)
        self.label = np.fromiter((frame.label for frame in frames), dtype=np.int8, count=len(frames))
        self.content = np.zeros(len(frames), dtype=np.uint64)
        self.unreadable: dict[int, str] = {}

    def add(self, frames: Sequence[Frame], logits: Tensor, prob_fake: Tensor) -> None:
        """`logits` (B, 2) for real and fake, and `prob_fake` (B,). Raises RunError where a logit is not finite."""
        logits_np, prob_np = logits.float().cpu().numpy(), prob_fake.float().cpu().numpy()
        for frame, (real, fake), prob in zip(frames, logits_np, prob_np, strict=True):
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

    def stamp(self, stamps: Mapping[int, Stamp]) -> None:
        """Remember by index which images were predicted."""
        for index, stamp in stamps.items():
            self.content[index] = int(stamp.content or "0", 16)

    def is_same_image(self, index: int, stamp: Stamp) -> bool:
        """Whether the image that was read now is the one that was predicted, as far as that is known."""
        return self.content[index] in (0, int(stamp.content or "0", 16))

    def journal_rows(self, frames: Sequence[Frame], stamps: Mapping[int, Stamp]) -> list[list[object]]:
        """The journal's rows of these frames, each of which was added or is in `unreadable`."""
        return [
            [*_identity(frame), "", "", "", "", "", self.unreadable[frame.index], stamps[frame.index]]
            if frame.index in self.unreadable
            else [*self._row(frame), "", stamps[frame.index]]
            for frame in frames
        ]

    def belongs(self, row: Mapping[str, str]) -> bool:
        """Whether a journal's row is of a frame of this dataset."""
        known = row["index"].isdigit() and int(row["index"]) < len(self.frames)
        return known and [str(value) for value in _identity(self.frames[int(row["index"])])] == [
            row[column] for column in COLUMNS[:6]
        ]

    def restore(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Take over rows of journals, each of which belongs."""
        for row in rows:
            index = int(row["index"])
            self.stamp({index: Stamp.parse(row[STAMP])})
            if row[REASON]:
                self.add_unreadable(index, row[REASON])
            else:
                self._set(index, float(row["logit_real"]), float(row["logit_fake"]), float(row["prob_fake"]))

    def write(self, folder: Path) -> None:
        """Write `predictions.csv`, and `unreadable.csv` where there are such frames, each complete or not at all."""
        rows = (self._row(self.frames[int(index)]) for index in np.flatnonzero(self.seen))
        write_table(folder / PREDICTIONS, COLUMNS, rows)
        if self.unreadable:
            reasons = ([i, self.frames[i].path, self.unreadable[i]] for i in sorted(self.unreadable))
            write_table(folder / UNREADABLE, ("index", "path", "reason"), reasons)

    def _row(self, frame: Frame) -> list[object]:
        real, fake = self.logits[frame.index]
        # Nine digits give a float32 back exactly.
        numbers = [f"{value:.9g}" for value in (self.prob_fake[frame.index], real, fake)]
        decided = self.predicted(frame.index)
        return [*_identity(frame), *numbers, decided, decided == frame.label]

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
        """Class of frame `index`."""
        return predicted(self.prob_fake[index])

    def metrics(self) -> DetectionMetrics:
        """Metrics over the readable frames; a video is identified by label name and video name."""
        seen = np.flatnonzero(self.seen)
        videos = [(self.frames[int(i)].forgery, self.frames[int(i)].video) for i in seen]
        return detection_metrics(self.prob_fake[seen].tolist(), self.label[seen].tolist(), videos)

    def choose(self, count: int | None, mistakes_only: bool, select: str, seed: int) -> list[int]:
        """Indices of the frames to explain, ascending: all, or `count` of them by `select`.

        "confident": the highest probability of the predicted class first; "first": in order; "random": by `seed`.
        """
        fake = self.prob_fake > THRESHOLD
        wanted = self.seen & (fake != (self.label > 0)) if mistakes_only else self.seen
        indices = np.flatnonzero(wanted)
        if count is not None and count < len(indices):
            if select == "confident":
                doubt = np.where(fake, -self.prob_fake, self.prob_fake - 1)[indices]
                indices = indices[np.argsort(doubt, kind="stable")]
            elif select == "random":
                indices = np.random.default_rng(seed).permutation(indices)
            indices = np.sort(indices[:count])
        return [int(index) for index in indices]


def _identity(frame: Frame) -> list[object]:
    return [frame.index, frame.path, frame.dataset, frame.forgery, frame.video, frame.label]


class Resume:
    """The state of one dataset's folder. What was damaged, changed or predicted of another file counts as missing:
    `remarks` says so. `whole`: the samples whose files were all as written at the start, with their layers.
    `predictions`: those of the journals, and of this run as it goes on."""

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
