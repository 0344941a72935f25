"""Regions and mean maps as values that the page draws in its own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ...store.grey_maps import signed_grey
from ..aggregate_images import MOST_ROWS, shade
from ..face_regions import REGIONS
from ..mean_face import MEAN_FACE
from ..mean_maps import MeanMaps
from ..region_tables import GroupRegions
from .gallery import svg_path
from .pixels import data_uri

MEAN_PIXELS = 32  # a side of a mean map on the page

# Landmarks that are joined: (first, last, closed).
LINES = ((0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False), (36, 41, True),
         (42, 47, True), (48, 59, True), (60, 67, True))  # fmt: skip


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


def _region_cell(mean: float, low: float, high: float) -> dict[str, Any]:
    """Text, its interval, and the colour: `side` "more", "less" or "", `strength` 0 to 100."""
    if not math.isfinite(mean):
        return {"text": "–", "interval": "outside the image", "side": "", "strength": 0}
    interval = f"{low:.2f}–{high:.2f}" if math.isfinite(low) else "one video, no interval"
    side, strength = ("more" if shade(mean) > 0 else "less"), round(100 * abs(shade(mean)))
    return {"text": f"{mean:.1f}", "interval": interval, "side": side, "strength": strength}


def mean_maps_view(maps: MeanMaps) -> dict[str, Any]:
    """Per layer the mean map of each forgery and outcome and the fakes' less the reals', as PNGs in data URIs.

    `peak`: the highest value of any mean map, which is white in their images.
    """
    groups = maps.groups()[:MOST_ROWS]
    found = {layer: [(*group, maps.mean(*group, layer)) for group in groups] for layer in maps.layers}
    peak = max(float(np.nanmax(mean[0])) for of_layer in found.values() for *_, mean in of_layer if mean is not None)
    layers = []
    for layer, of_layer in found.items():
        shown = []
        for forgery, outcome, mean in of_layer:
            if mean is not None:
                image = _png(np.rint(_small(mean[0] / peak).clip(0, 1) * 255).astype(np.uint8))
                caption = f"samples: {mean[1]}"
                shown.append({"image": image, "title": f"{forgery} · {outcome}", "caption": caption, "signed": False})
        difference = maps.fake_minus_real(layer)
        if difference is not None:
            largest = float(np.nanmax(np.abs(difference)))
            caption = f"red +{largest:.2f}, blue −{largest:.2f}"
            image = _png(signed_grey(_small(difference)))
            shown.append({"image": image, "title": "fakes − reals", "caption": caption, "signed": True})
        layers.append((layer, shown))
    return {"layers": layers, "peak": peak}


def _small(values: np.ndarray) -> np.ndarray:
    """0 where no image reaches."""
    return cv2.resize(np.nan_to_num(values), (MEAN_PIXELS, MEAN_PIXELS), interpolation=cv2.INTER_AREA)


def _png(grey: np.ndarray) -> str:
    done, data = cv2.imencode(".png", grey)
    if not done:
        raise OSError(f"OpenCV could not encode a grey image of shape {grey.shape}")
    return data_uri(data.tobytes(), "png")


def face_lines() -> str:
    """The mean face as an SVG path in a square of side 100."""
    return "".join(svg_path(100 * MEAN_FACE[first : last + 1], closed) for first, last, closed in LINES)
