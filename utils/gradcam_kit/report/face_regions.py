"""How much of one sample's map falls on which part of the face, measured against the part's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from ..data.images import UnreadableImage
from ..data.masks.annotations import face_points
from ..store.sample import Sample
from .mean_face import MEAN_FACE

REGIONS = (
    "left eye", "right eye", "brows", "nose", "mouth", "cheeks", "jaw line", "forehead", "boundary ring", "background",
)  # fmt: skip
SIZE = 224  # pixels a side at which regions are drawn

LEFT_BROW, RIGHT_BROW, NOSE = slice(17, 22), slice(22, 27), slice(27, 36)
LEFT_EYE, RIGHT_EYE, MOUTH, FOREHEAD = slice(36, 42), slice(42, 48), slice(48, 68), slice(68, 81)
CHIN = (4, 5, 6, 7, 8, 9, 10, 11, 12, 54, 48)  # jaw points below the mouth's corners, and these corners

# What is drawn over the cheeks, in this order, and how far each part grows in units of the distance between the eyes'
# centres: landmarks run along the edge of the eyeball, the hairs and the lips, and what a forger blends lies a little
# outside of them.
FEATURES = (
    ("nose", NOSE, 0.10), ("mouth", MOUTH, 0.08), ("brows", LEFT_BROW, 0.07), ("brows", RIGHT_BROW, 0.07),
    ("left eye", LEFT_EYE, 0.14), ("right eye", RIGHT_EYE, 0.14),
)  # fmt: skip
RING = 0.11  # half the width of the boundary ring, in the same unit


class RegionShares(NamedTuple):
    """One map's preference for each region: its share of the map's mass over its share of the image (1 = none).

    `preference` (10,) in the order of REGIONS, NaN for a region outside the image.
    """

    sample: Sample
    layer: str
    preference: np.ndarray
    mean_face: bool  # no landmarks: the regions of the mean face were taken


def region_image(landmarks: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Which region every pixel belongs to: uint8 (size, size), positions in REGIONS.

    `landmarks`: (81, 2), x and y as fractions of the image. Left and right are the viewer's. The face is the convex
    hull of all points, and its boundary ring lies half inside, half outside of it; forehead, cheeks and jaw line are
    what features and ring leave of it above the brows, between, and below the mouth's corners.
    """
    points = landmarks * size
    unit = float(np.linalg.norm(points[RIGHT_EYE].mean(axis=0) - points[LEFT_EYE].mean(axis=0)))
    image = np.full((size, size), REGIONS.index("background"), dtype=np.uint8)
    _draw(image, "cheeks", points)
    _draw(image, "jaw line", points[list(CHIN)])
    _draw(image, "forehead", np.concatenate([points[FOREHEAD], points[LEFT_BROW], points[RIGHT_BROW]]))
    _draw(image, "boundary ring", points, RING * unit, filled=False)
    for name, part, grow in FEATURES:
        _draw(image, name, points[part], grow * unit)
    return image


def _draw(
    image: np.ndarray, region: str, points: np.ndarray, half_width: float | None = None, filled: bool = True
) -> None:
    """The convex hull of `points`, with an outline of that half width where it is given."""
    hull, value = cv2.convexHull(np.rint(points).astype(np.int32)), REGIONS.index(region)
    if filled:
        cv2.fillPoly(image, [hull], value)
    if half_width is not None:
        cv2.polylines(image, [hull], True, value, max(1, round(2 * half_width)))


def region_shares(raw_map: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Preference for every region (10,) of a raw map (h, w) of non-negative values, not all zero."""
    full = cv2.resize(raw_map, regions.shape[::-1], interpolation=cv2.INTER_LINEAR)
    mass = np.bincount(regions.ravel(), weights=full.ravel(), minlength=len(REGIONS))
    area = np.bincount(regions.ravel(), minlength=len(REGIONS)) / regions.size
    return np.divide(mass / mass.sum(), area, out=np.full(len(REGIONS), np.nan), where=area > 0)


def sample_landmarks(sample: Sample) -> np.ndarray | None:
    """The sample's landmarks (81, 2) as fractions of its image; None where they, or the image, are of no use."""
    try:
        return face_points(sample.path)
    except (UnreadableImage, OSError):
        return None


def sample_regions(
    sample: Sample, raw_maps: Mapping[str, np.ndarray], landmarks: np.ndarray | None
) -> list[RegionShares]:
    """The shares of every layer's raw map; without landmarks on the mean face's regions."""
    regions = region_image(MEAN_FACE if landmarks is None else landmarks)
    return [
        RegionShares(sample, layer, region_shares(raw, regions), landmarks is None) for layer, raw in raw_maps.items()
    ]
