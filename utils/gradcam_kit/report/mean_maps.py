"""Mean maps on the mean face, and the similarity of maps within and across classes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..store.read_run import OUTCOMES
from ..store.sample import Sample

# Fractions of the crop's width and height, in the usual order: jaw line, brows, nose, eyes, mouth, forehead. Made from
# the landmarks of this project's synthetic faces, moved so that eyes, nose and mouth lie where the benchmarks'
# preprocessing puts them (media/faces.py), and mirrored, so that left and right are alike.
MEAN_FACE = np.array([
    (0.233, 0.488), (0.234, 0.565), (0.243, 0.639), (0.264, 0.708), (0.299, 0.768), (0.344, 0.817), (0.398, 0.854),
    (0.453, 0.877), (0.500, 0.885), (0.547, 0.877), (0.602, 0.854), (0.656, 0.817), (0.701, 0.768), (0.736, 0.708),
    (0.757, 0.639), (0.766, 0.565), (0.767, 0.488), (0.306, 0.417), (0.342, 0.405), (0.379, 0.400), (0.415, 0.403),
    (0.451, 0.412), (0.549, 0.412), (0.585, 0.403), (0.621, 0.400), (0.658, 0.405), (0.694, 0.417), (0.500, 0.490),
    (0.500, 0.537), (0.500, 0.584), (0.500, 0.631), (0.447, 0.654), (0.474, 0.663), (0.500, 0.672), (0.526, 0.663),
    (0.553, 0.654), (0.328, 0.488), (0.366, 0.465), (0.403, 0.463), (0.440, 0.491), (0.403, 0.505), (0.366, 0.501),
    (0.560, 0.491), (0.597, 0.463), (0.634, 0.465), (0.672, 0.488), (0.634, 0.501), (0.597, 0.505), (0.408, 0.731),
    (0.443, 0.721), (0.474, 0.719), (0.500, 0.723), (0.526, 0.719), (0.557, 0.721), (0.592, 0.731), (0.557, 0.763),
    (0.526, 0.774), (0.500, 0.777), (0.474, 0.774), (0.443, 0.763), (0.422, 0.733), (0.468, 0.738), (0.500, 0.740),
    (0.532, 0.738), (0.578, 0.733), (0.532, 0.746), (0.500, 0.748), (0.468, 0.746), (0.286, 0.327), (0.322, 0.302),
    (0.357, 0.281), (0.393, 0.264), (0.429, 0.253), (0.464, 0.246), (0.500, 0.243), (0.536, 0.246), (0.571, 0.253),
    (0.607, 0.264), (0.643, 0.281), (0.678, 0.302), (0.714, 0.327),
])  # fmt: skip

# Points on and outside the border, which carry what lies around the face: they move as the face does on the whole.
_FRAME = np.array(
    [(x, y) for x in (-0.5, 0.0, 0.5, 1.0, 1.5) for y in (-0.5, 0.0, 0.5, 1.0, 1.5) if (x, y) != (0.5, 0.5)]
)


def warp_to_mean_face(maps: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """Warp maps (L, H, W) float32 so that landmarks (81, 2), fractions of width and height, match the mean face.

    It is piecewise affine over a Delaunay triangulation; around the face, the affine map that fits best. Returns
    (L, size, size) float32, NaN outside the image.
    """
    corners, shares = _triangles(size)
    design = np.column_stack([MEAN_FACE, np.ones(len(MEAN_FACE))])
    affine = np.linalg.lstsq(design, landmarks.astype(np.float64), rcond=None)[0]
    points = np.concatenate([landmarks, np.column_stack([_FRAME, np.ones(len(_FRAME))]) @ affine])
    place = np.einsum("pk,pkd->pd", shares, points[corners]).reshape(size, size, 2)
    height, width = maps.shape[1:]
    # Fraction f of the width lies at pixel f * width - 1/2, because pixel 0 covers the fractions 0 to 1 / width.
    x, y = (place[..., 0] * width - 0.5).astype(np.float32), (place[..., 1] * height - 0.5).astype(np.float32)
    inside = (place >= 0).all(axis=-1) & (place <= 1).all(axis=-1)
    warped = np.stack([cv2.remap(one, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for one in maps])
    warped[:, ~inside] = np.nan
    return warped


@functools.lru_cache(maxsize=4)
def _triangles(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel of the mean face the three points around it (P, 3), and their weights (P, 3)."""
    from scipy.spatial import Delaunay

    points = np.concatenate([MEAN_FACE, _FRAME])
    mesh = Delaunay(points)
    centres = (np.arange(size) + 0.5) / size
    pixels = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    triangle = mesh.find_simplex(pixels)
    to_shares = mesh.transform[triangle]  # (P, 3, 2): the inverse of the triangle's edges, then its last corner
    first_two = np.einsum("pij,pj->pi", to_shares[:, :2], pixels - to_shares[:, 2])
    return (mesh.simplices[triangle], np.column_stack([first_two, 1 - first_two.sum(axis=1)]))


MEAN_SIZE = 64  # pixels per side of a mean map: finer than any patch grid

VideoSum = tuple[np.ndarray, int]  # sum of the standardised maps of a video's frames, and their number


class Similarity(NamedTuple):
    """Mean Pearson correlation of all pairs of samples' maps on the mean face; NaN without a pair.

    Only frames of videos with different names are paired: a fake and its real, or two forgeries of a face, are not.
    """

    within_real: float
    within_fake: float
    across: float
    reals: int
    fakes: int


class MeanMaps:
    """Sums over the samples of one dataset for means and similarities; it keeps no single map."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._order = list(layers)
        self._sums: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray, int]] = {}
        # layer → class → video → sum of standardised maps and their number
        self._videos: dict[str, dict[int, dict[str, VideoSum]]] = {}

    def add(self, sample: Sample, raw_maps: Mapping[str, np.ndarray], landmarks: np.ndarray | None) -> None:
        """Add a sample: its raw maps by layer, none all zero, and its landmarks as fractions, or None."""
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
        """Add a map with mean 0 and length 1, so that the scalar product of two maps is their correlation."""
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
        """The layers with maps, in the run's order."""
        return [layer for layer in self._order if layer in self._videos]

    def groups(self) -> list[tuple[str, str]]:
        """The (forgery, outcome) pairs with maps: forgeries in the samples' order, outcomes TP, FP, TN, FN."""
        found = {key[:2] for key in self._sums}
        forgeries = dict.fromkeys(key[0] for key in self._sums)
        return [(forgery, outcome) for forgery in forgeries for outcome in OUTCOMES if (forgery, outcome) in found]

    def mean(self, forgery: str, outcome: str, layer: str) -> tuple[np.ndarray, int] | None:
        """Return the mean normalised map (MEAN_SIZE, MEAN_SIZE), NaN outside all images, and the number of samples."""
        if (forgery, outcome, layer) not in self._sums:
            return None
        total, count, samples = self._sums[forgery, outcome, layer]
        return _ratio(total, count), samples

    def fake_minus_real(self, layer: str) -> np.ndarray | None:
        """Return the mean map of all fakes minus that of all reals; None if one has no map."""
        means = []
        for outcomes in (("TP", "FN"), ("TN", "FP")):
            members = [value[:2] for key, value in self._sums.items() if key[2] == layer and key[1] in outcomes]
            if not members:
                return None
            means.append(_ratio(*(np.sum(arrays, axis=0) for arrays in zip(*members, strict=True))))
        return means[0] - means[1]

    def similarity(self, layer: str) -> Similarity:
        real, fake = self._videos[layer].get(0, {}), self._videos[layer].get(1, {})
        counts = [sum(count for _, count in videos.values()) for videos in (real, fake)]
        return Similarity(_pairs(real, real), _pairs(fake, fake), _pairs(real, fake), *counts)


def _pairs(one: Mapping[str, VideoSum], other: Mapping[str, VideoSum]) -> float:
    """Return the mean scalar product of all pairs except those inside a video, computed from sums."""
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
