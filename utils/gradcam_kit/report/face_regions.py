"""The distribution of maps over parts of the face: per sample, and per group with intervals, as CSV tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..base.files import write_table
from ..data.images import UnreadableImage
from ..data.masks import face_points
from ..judge.bootstrap import Interval, VideoBootstrap
from ..store.read_run import OUTCOMES
from ..store.sample import Sample

REGIONS = (
    "left eye", "right eye", "brows", "nose", "mouth", "cheeks", "jaw line", "forehead", "boundary ring", "background",
)  # fmt: skip
SIZE = 224  # pixels per side at which regions are drawn

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
    """One map's preference for each region: share of the map ÷ share of the image (1 = no preference).

    `preference` (10,) in the order of REGIONS, NaN for a region outside the image.
    """

    sample: Sample
    layer: str
    preference: np.ndarray
    mean_face: bool  # no landmarks: the regions of the mean face are used


def region_image(landmarks: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Draw the regions of landmarks (81, 2), x and y as fractions of the image.

    Returns indices into REGIONS, (size, size) uint8. Left and right are the viewer's. The face is the points' convex
    hull; its boundary ring is half inside, half outside. Forehead, cheeks and jaw line are the rest above the brows,
    between, and below the mouth.
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


def _draw(image: np.ndarray, region: str, points: np.ndarray, grow: float | None = None, filled: bool = True) -> None:
    """Draw the convex hull of `points`, with an outline of half the width `grow` if given."""
    hull, value = cv2.convexHull(np.rint(points).astype(np.int32)), REGIONS.index(region)
    if filled:
        cv2.fillPoly(image, [hull], value)
    if grow is not None:
        cv2.polylines(image, [hull], True, value, max(1, round(2 * grow)))


def region_shares(raw_map: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Compute the preference for each region (10,) of a raw map (h, w), non-negative and not all zero."""
    full = cv2.resize(raw_map, regions.shape[::-1], interpolation=cv2.INTER_LINEAR)
    mass = np.bincount(regions.ravel(), weights=full.ravel(), minlength=len(REGIONS))
    area = np.bincount(regions.ravel(), minlength=len(REGIONS)) / regions.size
    return np.divide(mass / mass.sum(), area, out=np.full(len(REGIONS), np.nan), where=area > 0)


def sample_landmarks(sample: Sample) -> np.ndarray | None:
    """Return the sample's landmarks (81, 2) as fractions of its image; None if they or the image are unusable."""
    try:
        return face_points(sample.path)
    except (UnreadableImage, OSError):
        return None


# ----------------------------------------------------------------------------------------------- groups of samples


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRegions:
    """Mean preferences of the samples of one dataset, forgery, outcome and layer, in the order of REGIONS."""

    dataset: str
    forgery: str
    outcome: str
    layer: str
    samples: int
    videos: int
    mean_faces: int  # samples without landmarks, with the mean face's regions
    preference: list[Interval]  # with one video, low and high are NaN

    @property
    def layout(self) -> str:
        if not self.mean_faces:
            return "landmarks"
        return "mean face" if self.mean_faces == self.samples else f"mean face for {self.mean_faces}"

    def headline(self) -> str:
        """Return the region with the highest preference: `deepfacelab: 3.1 × on the boundary ring (2.8–3.4)`."""
        # In any crop some region is visible, so at least one mean is a number.
        top = int(np.nanargmax([one.mean for one in self.preference]))
        best = self.preference[top]
        interval = f" ({best.low:.1f}–{best.high:.1f})" if math.isfinite(best.low) else ""
        return f"{self.forgery}: {best.mean:.1f} × on the {REGIONS[top]}{interval}"


def group_regions(shares: Sequence[RegionShares], layers: Sequence[str]) -> list[GroupRegions]:
    """Group the shares by dataset and forgery (in the samples' order), outcome (TP, FP, TN, FN) and layer."""
    groups: dict[tuple[str, str, str, str], list[RegionShares]] = {}
    for one in shares:
        groups.setdefault((one.sample.dataset, one.sample.forgery, one.sample.outcome, one.layer), []).append(one)
    forgeries = list(dict.fromkeys(key[:2] for key in groups))
    found = []
    for dataset, forgery in forgeries:
        for outcome, layer in itertools.product(OUTCOMES, layers):
            members = groups.get((dataset, forgery, outcome, layer))
            if members:
                videos = [one.sample.video for one in members]
                bootstrap = VideoBootstrap(videos, seed=0, resamples=1000)
                found.append(GroupRegions(
                    dataset=dataset, forgery=forgery, outcome=outcome, layer=layer,
                    samples=len(members), videos=len(set(videos)), mean_faces=sum(one.mean_face for one in members),
                    preference=bootstrap.intervals(np.stack([one.preference for one in members])),
                ))  # fmt: skip
    return found


def headlines(groups: Sequence[GroupRegions], layer: str) -> list[GroupRegions]:
    """Return at one layer, per forgery, its detected fakes, or else the largest group."""
    best: dict[tuple[str, str], GroupRegions] = {}
    for group in groups:
        if group.layer == layer:
            known = best.get((group.dataset, group.forgery))
            if known is None or (known.outcome != "TP" and group.samples > known.samples):
                best[group.dataset, group.forgery] = group
    return list(best.values())


def write_sample_table(path: Path, shares: Sequence[RegionShares]) -> None:
    """Write a CSV: one row per sample and layer, one column of preference per region."""
    rows = [
        [one.sample.index, one.sample.forgery, one.sample.video, one.sample.outcome, one.layer,
         "mean face" if one.mean_face else "landmarks", *map(table_number, one.preference)]
        for one in shares
    ]  # fmt: skip
    write_table(path, ("index", "forgery", "video", "outcome", "layer", "layout", *REGIONS), rows)


def write_group_table(path: Path, groups: Sequence[GroupRegions]) -> None:
    """Write a CSV with one row per group and region."""
    names, numbers = ("dataset", "forgery", "outcome", "layer", "region"), ("preference", "low", "high")
    rows = [
        [group.dataset, group.forgery, group.outcome, group.layer, region,
         *map(table_number, interval[:3]), group.samples, group.videos, group.layout]
        for group in groups
        for region, interval in zip(REGIONS, group.preference, strict=True)
    ]  # fmt: skip
    write_table(path, (*names, *numbers, "samples", "videos", "layout"), rows)


def table_number(value: float) -> str:
    """Format a number with four decimals; NaN as ""."""
    return f"{value:.4f}" if math.isfinite(value) else ""
