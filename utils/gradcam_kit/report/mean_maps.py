"""Maps warped to the mean face and averaged, and how similar maps are within a class and across classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..store.read_run import OUTCOMES
from ..store.sample import Sample
from .mean_face import MEAN_FACE, warp_to_mean_face

MEAN_SIZE = 64  # pixels a side of a mean map: finer than any patch grid

VideoSum = tuple[np.ndarray, int]  # sum of the standardised maps of a video's frames, and how many they are


class Similarity(NamedTuple):
    """Mean Pearson correlation of all pairs of samples' maps on the mean face; NaN where there is no pair.

    Frames of one video are no pair, nor are those of videos of one name: a fake and its real, two forgeries of a face.
    """

    within_real: float
    within_fake: float
    across: float
    reals: int
    fakes: int


class MeanMaps:
    """Sums over the samples of one dataset, from which means and similarities follow; holds no single map."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._order = list(layers)
        self._sums: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray, int]] = {}
        # layer → class → video → sum of standardised maps and their number
        self._videos: dict[str, dict[int, dict[str, VideoSum]]] = {}

    def add(self, sample: Sample, raw_maps: Mapping[str, np.ndarray], landmarks: np.ndarray | None) -> None:
        """One sample: its raw maps by layer, none of them all zero, and its landmarks as fractions, or None."""
        if not raw_maps:
            return
        size = (2 * MEAN_SIZE, 2 * MEAN_SIZE)
        full = [cv2.resize(raw, size, interpolation=cv2.INTER_LINEAR) for raw in raw_maps.values()]
        # Min-max normalised, as the overlays are, so that every sample weighs the same.
        unit = np.stack([(raw - raw.min()) / (raw.max() - raw.min()) for raw in full])
        warped = warp_to_mean_face(unit, MEAN_FACE if landmarks is None else landmarks, MEAN_SIZE)
        for layer, one in zip(raw_maps, warped, strict=True):
            key = (sample.forgery, sample.outcome, layer)
            total, count, samples = self._sums.get(key, (np.zeros(one.shape), np.zeros(one.shape), 0))
            self._sums[key] = (total + np.nan_to_num(one), count + np.isfinite(one), samples + 1)
            self._add_standardised(sample, layer, one)

    def _add_standardised(self, sample: Sample, layer: str, warped: np.ndarray) -> None:
        """A map of mean 0 and length 1, so that the scalar product of two is their correlation."""
        vector = np.where(np.isfinite(warped), warped, np.nanmean(warped)).ravel().astype(np.float64)
        vector -= vector.mean()
        length = np.linalg.norm(vector)
        if length == 0:
            return
        videos = self._videos.setdefault(layer, {}).setdefault(sample.label, {})
        total, count = videos.get(sample.video, (np.zeros(vector.shape), 0))
        videos[sample.video] = (total + vector / length, count + 1)

    @property
    def layers(self) -> list[str]:
        """Layers of which there are maps, in the run's order."""
        return [layer for layer in self._order if layer in self._videos]

    def groups(self) -> list[tuple[str, str]]:
        """(forgery, outcome) of which there are maps: forgeries as they came, outcomes TP, FP, TN, FN."""
        found = {key[:2] for key in self._sums}
        forgeries = dict.fromkeys(key[0] for key in self._sums)
        return [(forgery, outcome) for forgery in forgeries for outcome in OUTCOMES if (forgery, outcome) in found]

    def mean(self, forgery: str, outcome: str, layer: str) -> tuple[np.ndarray, int] | None:
        """Mean of the normalised maps (MEAN_SIZE, MEAN_SIZE), NaN where no image reaches, and how many samples."""
        if (forgery, outcome, layer) not in self._sums:
            return None
        total, count, samples = self._sums[forgery, outcome, layer]
        return _ratio(total, count), samples

    def fake_minus_real(self, layer: str) -> np.ndarray | None:
        """Mean map of all fakes less that of all reals (outcome aside); None where one of them has no map."""
        means = []
        for outcomes in (("TP", "FN"), ("TN", "FP")):
            members = [value[:2] for key, value in self._sums.items() if key[2] == layer and key[1] in outcomes]
            if not members:
                return None
            means.append(_ratio(*(np.sum(arrays, axis=0) for arrays in zip(*members, strict=True))))
        return means[0] - means[1]

    def similarity(self, layer: str) -> Similarity:
        """How alike maps are."""
        real, fake = self._videos[layer].get(0, {}), self._videos[layer].get(1, {})
        counts = [sum(count for _, count in videos.values()) for videos in (real, fake)]
        return Similarity(_pairs(real, real), _pairs(fake, fake), _pairs(real, fake), *counts)


def _pairs(one: Mapping[str, VideoSum], other: Mapping[str, VideoSum]) -> float:
    """Mean scalar product of all pairs less those inside a video: computed from sums, without forming the pairs."""
    both = [video for video in one if video in other]
    counts = [sum(count for _, count in videos.values()) for videos in (one, other)]
    pairs = counts[0] * counts[1] - sum(one[video][1] * other[video][1] for video in both)
    if not pairs:
        return math.nan
    totals = [np.sum([total for total, _ in videos.values()], axis=0) for videos in (one, other)]
    inside = sum(float(one[video][0] @ other[video][0]) for video in both)
    return (float(totals[0] @ totals[1]) - inside) / pairs


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
