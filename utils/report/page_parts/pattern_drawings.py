"""Regions and mean maps as values that the page draws in its own colours."""

from __future__ import annotations

import base64
import math
from typing import Any, NamedTuple, Sequence

import cv2
import numpy as np

from utils.report.face_regions import REGIONS
from utils.report.mean_face import MEAN_FACE
from utils.report.mean_maps import MeanMaps
from utils.report.region_tables import GroupRegions
from utils.results.grey_maps import signed_grey

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


def mean_map_rows(maps: MeanMaps) -> list[dict[str, Any]]:
    """A row per forgery and outcome, a cell per layer: the mean map as a grey PNG, and how many samples it is of."""
    rows = []
    for forgery, outcome in maps.groups()[:MOST_ROWS]:
        found = [maps.mean(forgery, outcome, layer) for layer in maps.layers]
        cells = [None if one is None else (_grey_png(one[0]), one[1]) for one in found]
        rows.append({"forgery": forgery, "outcome": outcome, "cells": cells})
    return rows


def difference_row(maps: MeanMaps) -> list[tuple[str, float] | None]:
    """Fakes' mean less the reals' per layer: a signed grey PNG and its largest magnitude; empty without any."""
    differences = [maps.fake_minus_real(layer) for layer in maps.layers]
    if all(one is None for one in differences):
        return []
    return [None if one is None else (_signed_png(one), float(np.nanmax(np.abs(one)))) for one in differences]


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
