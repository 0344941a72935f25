"""Predictions per frame: in memory, as rows of the database, and restored from an earlier call of the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..base.decision import THRESHOLD, predicted_class
from ..base.errors import RunError
from ..base.text import printable, shortened
from ..data.frame import Frame
from ..data.frame_paths import Stamp, hash_of, landmark_path
from ..judge.detection_metrics import DetectionMetrics, detection_metrics
from ..judge.forgeries import details
from ..store.database import DatabaseRow
from ..store.sample import Sample
from ..store.sample_folder import is_as_written
from ..store.sample_writer import saves


class Predictions:
    """Predictions of one dataset, 22 bytes per frame besides the frames themselves.

    Attributes: `logits` (N, 2) and `prob_fake` (N,) float32, NaN if missing; `label` (N,) int8; `content` (N,) uint64,
    the predicted image's hash, 0 if unknown; `unreadable`: index → reason why the frame could not be read.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.logits = np.full((len(frames), 2), np.nan, dtype=np.float32)
        self.prob_fake = np.full(len(frames), np.nan, dtype=np.float32)
        self.label = np.fromiter((frame.label for frame in frames), dtype=np.int8, count=len(frames))
        self.content = np.zeros(len(frames), dtype=np.uint64)
        self.unreadable: dict[int, str] = {}

    def add(self, frames: Sequence[Frame], logits: Tensor, prob_fake: Tensor) -> None:
        """Add `logits` (B, 2) for real and fake and `prob_fake` (B,). Raises RunError if a logit is not finite."""
        logits_np, prob_np = logits.float().cpu().numpy(), prob_fake.float().cpu().numpy()
        for frame, (real, fake), prob in zip(frames, logits_np, prob_np, strict=True):
            if not (np.isfinite(real) and np.isfinite(fake)):
                raise RunError(
                    f"the detector's logits for {frame.path} are {real} and {fake}: check the weights, or use fp32"
                )
            self._set(frame.index, real, fake, prob)

    def add_unreadable(self, index: int, reason: str) -> None:
        self._set(index, np.nan, np.nan, np.nan)
        self.unreadable[index] = reason

    def _set(self, index: int, real: float, fake: float, prob_fake: float) -> None:
        self.logits[index] = real, fake
        self.prob_fake[index] = prob_fake
        self.unreadable.pop(index, None)

    def stamp(self, stamps: Mapping[int, Stamp]) -> None:
        """Record the hashes of the predicted images, by index."""
        for index, stamp in stamps.items():
            self.content[index] = int(stamp.content or "0", 16)

    def is_same_image(self, index: int, stamp: Stamp) -> bool:
        """Tell whether the image that was just read is the predicted one; True if unknown."""
        return self.content[index] in (0, int(stamp.content or "0", 16))

    def rows(self, frames: Sequence[Frame], stamps: Mapping[int, Stamp]) -> Iterator[tuple[object, ...]]:
        """Yield the database's rows of these frames, which must be predicted or unreadable."""
        for frame in frames:
            reason = self.unreadable.get(frame.index, "")
            real, fake = self.logits[frame.index].tolist()
            scores = (None, None, None) if reason else (real, fake, float(self.prob_fake[frame.index]))
            yield (*_identity(frame), *scores, reason, str(stamps[frame.index]))

    def belongs(self, row: DatabaseRow) -> bool:
        """Tell whether a row belongs to a frame of this dataset."""
        return row[1] < len(self.frames) and row[:6] == _identity(self.frames[row[1]])

    def restore(self, rows: Iterable[DatabaseRow]) -> None:
        for _, index, *_, real, fake, prob_fake, reason, stamp, _ in rows:
            self.stamp({index: Stamp.parse(stamp)})
            if reason:
                self.add_unreadable(index, reason)
            else:
                self._set(index, real, fake, prob_fake)

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: frames with a prediction, that is, readable ones."""
        return ~np.isnan(self.prob_fake)

    @property
    def done(self) -> np.ndarray:
        """(N,) bool: frames with a prediction, and unreadable ones."""
        done = self.seen
        done[list(self.unreadable)] = True
        return done

    def predicted(self, index: int) -> int:
        """Return the predicted class of frame `index`: 0 real, 1 fake."""
        return predicted_class(self.prob_fake[index])

    def metrics(self) -> DetectionMetrics:
        """Compute metrics over the readable frames. Label name and video name identify a video."""
        seen = np.flatnonzero(self.seen)
        videos = [(self.frames[int(i)].forgery, self.frames[int(i)].video) for i in seen]
        scores, labels = self.prob_fake[seen].tolist(), self.label[seen].tolist()
        found = detection_metrics(scores, labels, videos)
        more = details(scores, labels, [forgery for forgery, _ in videos], videos)
        warning = "; ".join(filter(None, (found.warning, self._in_both_classes())))
        return replace(found, warning=warning, details=more)

    def _in_both_classes(self) -> str:
        """Describe images that are, byte for byte, both real and fake in the dataset; "" if there are none."""
        known = self.content != 0
        real, fake = (np.flatnonzero(known & (self.label == number)) for number in (0, 1))
        common, at_real, at_fake = np.intersect1d(self.content[real], self.content[fake], return_indices=True)
        if not len(common):
            return ""
        paths = [shortened(self.frames[int(places[0])].path, 200) for places in (real[at_real], fake[at_fake])]
        return (
            f"{len(common)} images are both real and fake, byte for byte, for example {paths[0]} and {paths[1]}:"
            " one of the labels is wrong"
        )

    def choose(self, count: int | None, mistakes_only: bool, select: str, seed: int) -> list[int]:
        """Choose the frames to explain: all, or `count` of them by `select`. Return ascending indices.

        "confident": the highest probability of the predicted class first; "first": in order; "random": by `seed`;
        "mixed": whatever else is wanted, two of five are fakes that were found, of all forgeries and of as many videos
        as there are, the others wrong predictions; what one kind lacks the other fills up.
        """
        if select == "mixed" and count is not None:
            wrong, found = self.choose(None, True, "first", 0), self._found_fakes()
            most_found = max(2 * count // 5, count - len(wrong))
            found = found[:most_found]
            return sorted([*found, *self.choose(count - len(found), True, "confident", seed)])
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

    def _found_fakes(self) -> list[int]:
        """The fakes that are called fake: of each forgery in turn the most confident frame of a video, then others."""
        found = np.flatnonzero(self.seen & (self.label > 0) & (self.prob_fake > THRESHOLD))
        in_order = [int(i) for i in found[np.argsort(-self.prob_fake[found], kind="stable")]]
        turns: Counter[tuple[str, ...]] = Counter()
        place = {}
        for index in in_order:
            frame = self.frames[index]
            of_video = turns[frame.forgery, frame.video]
            place[index] = of_video, turns[frame.forgery, "", str(of_video)]
            turns.update([(frame.forgery, frame.video), (frame.forgery, "", str(of_video))])
        return sorted(in_order, key=place.__getitem__)


def _identity(frame: Frame) -> DatabaseRow:
    return (frame.dataset, frame.index, frame.path, frame.forgery, frame.video, frame.label)


class Resume:
    """The results of an earlier call of the run for one dataset.

    Results that were edited, or come from another file or other code, count as missing; `remarks` lists them. `whole`:
    indices of complete samples. `predictions`: those in the database, and this run's as it continues.
    """

    def __init__(self, frames: Sequence[Frame], rows: Iterable[DatabaseRow], key: str) -> None:
        """`rows`: the frames' rows in the database. `key`: today's hash of everything that predictions depend on."""
        self.predictions = Predictions(frames)
        self.replaced: dict[int, str] = {}
        self.whole: set[int] = set()
        self._landmarks: list[str] = []
        self._incomplete = 0
        self.predictions.restore(self._usable(rows, key))
        self._recorded = self.predictions.done

    def _usable(self, rows: Iterable[DatabaseRow], key: str) -> Iterator[DatabaseRow]:
        for row in rows:
            if row[-1] == key and self.predictions.belongs(row):
                if Stamp.parse(row[10]).fits(row[2]):
                    yield row
                else:
                    self.replaced[row[1]] = row[2]

    def take_samples(self, rows: Iterable[DatabaseRow], key: str, folder: Path, save_images: str) -> None:
        """Find the complete samples: those in `rows` with this key, and with their files in `folder`."""
        for _, index, facts, files, lost, of in rows:
            if lost or of != key:
                continue
            sample, listed = Sample.from_json(json.loads(facts)), json.loads(files)
            there = listed and is_as_written(folder / f"sample{index}", listed)
            if self._is_of_prediction(index, sample) and (there or not saves(save_images, sample.correct)):
                self.whole.add(index)
            else:
                self._incomplete += 1

    def _is_of_prediction(self, index: int, sample: Sample) -> bool:
        """Tell whether a sample shows the recorded prediction and today's landmarks."""
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

    def remarks(self) -> list[str]:
        """Return lines that tell what is computed again, and why."""
        dataset = self.predictions.frames[0].dataset if self.predictions.frames else ""
        image, points = (printable(next(iter(paths), "")) for paths in (self.replaced.values(), self._landmarks))
        counts = {
            f"images have changed since their prediction, first {image}: predicted again": len(self.replaced),
            f"landmark files have changed, first {points}: these samples are explained again": len(self._landmarks),
            "samples were incomplete, damaged or edited: explained again": self._incomplete,
        }
        return [f"{dataset}: {count} {text}" for text, count in counts.items() if count > 0]

    def is_recorded(self, indices: Sequence[int]) -> bool:
        """Tell whether the earlier call has predicted all these frames."""
        return bool(self._recorded[list(indices)].all())

    def lacks_sample(self, index: int) -> bool:
        """Tell whether a readable frame has no complete sample from the earlier call."""
        return index not in self.whole and index not in self.predictions.unreadable

    def missing(self, batches: Sequence[Sequence[int]], predictions: bool, samples: bool) -> list[Sequence[int]]:
        """Return the batches that still lack the requested predictions or samples."""
        return [
            batch for batch in batches
            if (predictions and not self.is_recorded(batch)) or (samples and any(map(self.lacks_sample, batch)))
        ]  # fmt: skip
