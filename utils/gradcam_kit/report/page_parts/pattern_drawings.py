"""Regions and mean maps as values that the page draws in its own colours."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from ...store.grey_maps import signed_grey
from ..face_regions import REGIONS
from ..mean_face import MEAN_FACE
from ..mean_maps import MeanMaps
from ..region_tables import GroupRegions

MOST_ROWS = 60  # on the page; the CSV tables have all of them
STRONGEST = 8.0  # × at which the colours of the region table end
MEAN_PIXELS = 32  # a side of a mean map on the page

# Landmarks that are joined: (first, last, closed).
LINES = ((0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False), (36, 41, True),
         (42, 47, True), (48, 59, True), (60, 67, True))  # fmt: skip


class RegionCell(NamedTuple):
    """Text, its interval, and the colour: `side` "more", "less" or "", `strength` 0 to 100."""

    text: str
    interval: str
    side: str
    strength: int


def region_tables(groups: Sequence[GroupRegions]) -> list[dict[str, Any]]:
    """One table per layer: a row per forgery and outcome, a cell per region."""
    return [
        {
            "layer": layer,
            "regions": REGIONS,
            "rows": [
                (group.forgery, group.outcome, group.samples, [_region_cell(*one[:3]) for one in group.preference])
                for group in groups
                if group.layer == layer
            ][:MOST_ROWS],
        }
        for layer in dict.fromkeys(group.layer for group in groups)
    ]


def _region_cell(mean: float, low: float, high: float) -> RegionCell:
    """On a logarithmic scale, so that half and double are equally strong."""
    if not math.isfinite(mean):
        return RegionCell("–", "outside the image", "", 0)
    shade = math.log(min(max(mean, 1 / STRONGEST), STRONGEST)) / math.log(STRONGEST)
    interval = f"{low:.2f}–{high:.2f}" if math.isfinite(low) else "one video, no interval"
    return RegionCell(f"{mean:.1f}", interval, "more" if shade > 0 else "less", round(100 * abs(shade)))


class MeanMap(NamedTuple):
    """A grey or signed PNG as a data URI, whose it is, and a line below it."""

    image: str
    title: str
    caption: str
    signed: bool = False


class MeanMapsView(NamedTuple):
    """Per layer its mean maps, and the highest value of any: white in the grey images."""

    layers: list[tuple[str, list[MeanMap]]]
    peak: float


def mean_maps_view(maps: MeanMaps) -> MeanMapsView:
    """The mean map of each forgery and outcome, and the fakes' less the reals'."""
    groups = maps.groups()[:MOST_ROWS]
    found = {(group, layer): maps.mean(*group, layer) for layer in maps.layers for group in groups}
    peak = max(float(np.nanmax(one[0])) for one in found.values() if one is not None)
    layers = []
    for layer in maps.layers:
        shown = [
            MeanMap(_grey_png(one[0] / peak), f"{forgery} · {outcome}", f"samples: {one[1]}")
            for forgery, outcome in groups
            for one in [found[(forgery, outcome), layer]]
            if one is not None
        ]
        layers.append((layer, shown + _difference(maps.fake_minus_real(layer))))
    return MeanMapsView(layers, peak)


def _difference(difference: np.ndarray | None) -> list[MeanMap]:
    if difference is None:
        return []
    largest = float(np.nanmax(np.abs(difference)))
    return [MeanMap(_signed_png(difference), "fakes − reals", f"red +{largest:.2f}, blue −{largest:.2f}", signed=True)]


def _grey_png(mean: np.ndarray) -> str:
    """Values in 0..1; where no image reaches, 0."""
    small = cv2.resize(np.nan_to_num(mean), (MEAN_PIXELS, MEAN_PIXELS), interpolation=cv2.INTER_AREA)
    return _data_uri(np.rint(small.clip(0, 1) * 255).astype(np.uint8))


def _signed_png(difference: np.ndarray) -> str:
    small = cv2.resize(np.nan_to_num(difference), (MEAN_PIXELS, MEAN_PIXELS), interpolation=cv2.INTER_AREA)
    return _data_uri(signed_grey(small))


def _data_uri(grey: np.ndarray) -> str:
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise OSError(f"OpenCV could not encode a grey image of shape {grey.shape}")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def face_lines() -> str:
    """The mean face as an SVG path in a square of side 100."""
    paths = []
    for first, last, closed in LINES:
        points = 100 * MEAN_FACE[first : last + 1]
        paths.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else ""))
    return "".join(paths)
