"""Regions, mean maps and features as values for the page to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from ...store.read_run import RunOnDisk, frame_rows, reader
from ...store.sample_folder import png, signed_grey
from ...store.tables import features_of
from ..aggregates import MOST_ROWS, shade
from ..face_regions import REGIONS, GroupRegions
from ..mean_maps import MEAN_FACE, MeanMaps
from .gallery import data_uri, svg_path

POINTS = 3_000  # of a dataset; of more every k-th, and all explained samples
MEAN_PIXELS = 32  # a side of a mean map on the page

# Landmarks that are joined: (first, last, closed).
LINES = ((0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False), (36, 41, True),
         (42, 47, True), (48, 59, True), (60, 67, True))  # fmt: skip


def region_tables(groups: Sequence[GroupRegions]) -> list[dict[str, Any]]:
    """Return one table per layer: a row per forgery and outcome, a cell per region."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    for group in groups:
        cells = [_region_cell(*one[:3]) for one in group.preference]
        rows.setdefault(group.layer, []).append((group.forgery, group.outcome, group.samples, cells))
    return [{"layer": layer, "regions": REGIONS, "rows": found[:MOST_ROWS]} for layer, found in rows.items()]


def _region_cell(mean: float, low: float, high: float) -> dict[str, Any]:
    """Return text, interval and colour: `side` "more", "less" or "", `strength` 0 to 100."""
    if not math.isfinite(mean):
        return {"text": "–", "interval": "outside the image", "side": "", "strength": 0}
    interval = f"{low:.2f}–{high:.2f}" if math.isfinite(low) else "one video, no interval"
    side, strength = ("more" if shade(mean) > 0 else "less"), round(100 * abs(shade(mean)))
    return {"text": f"{mean:.1f}", "interval": interval, "side": side, "strength": strength}


def mean_maps_view(maps: MeanMaps) -> dict[str, Any]:
    """Return per layer the mean map of each forgery and outcome, white at the common `peak`, and fakes minus reals."""
    groups = maps.groups()[:MOST_ROWS]
    found = {layer: [(*group, maps.mean(*group, layer)) for group in groups] for layer in maps.layers}
    peak = max(float(np.nanmax(mean[0])) for of_layer in found.values() for *_, mean in of_layer if mean is not None)
    layers = []
    for layer, of_layer in found.items():
        shown = []
        for forgery, outcome, mean in of_layer:
            if mean is not None:
                image = data_uri(png(np.rint(_small(mean[0] / peak).clip(0, 1) * 255).astype(np.uint8)), "png")
                caption = f"samples: {mean[1]}"
                shown.append({"image": image, "title": f"{forgery} · {outcome}", "caption": caption, "signed": False})
        difference = maps.fake_minus_real(layer)
        if difference is not None:
            largest = float(np.nanmax(np.abs(difference)))
            caption = f"red +{largest:.2f}, blue −{largest:.2f}"
            image = data_uri(png(signed_grey(_small(difference))), "png")
            shown.append({"image": image, "title": "fakes − reals", "caption": caption, "signed": True})
        layers.append((layer, shown))
    return {"layers": layers, "peak": peak}


def _small(values: np.ndarray) -> np.ndarray:
    """Shrink a mean map to MEAN_PIXELS a side, with 0 outside all images."""
    return cv2.resize(np.nan_to_num(values), (MEAN_PIXELS, MEAN_PIXELS), interpolation=cv2.INTER_AREA)


def face_lines() -> str:
    """Return the mean face as an SVG path in a square of 100."""
    return "".join(svg_path(100 * MEAN_FACE[first : last + 1], closed) for first, last, closed in LINES)


def feature_views(run: RunOnDisk) -> list[dict[str, Any]]:
    """Return points for datasets with features, linked if explained, and the axes' shares of the variance."""
    views = []
    for data in run.datasets:
        features = features_of(reader(run.folder), data.name)
        if len(features) < 3:
            continue
        plane, shares = principal_plane(np.stack(list(features.values())))
        rows = {int(row["index"]): row for row in frame_rows(data.folder)}
        explained = {sample.index for sample in data.samples}
        step = -(-len(plane) // POINTS)
        points = [
            _point(data.name, rows[index], place, index in explained)
            for i, (index, place) in enumerate(zip(features, plane, strict=True))
            if index in rows and (i % step == 0 or index in explained)
        ]
        views.append({"dataset": data.name, "points": points, "frames": len(plane), "shares": shares})
    return views


def principal_plane(feat: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Project (N, D) to its first two principal components, (N, 2) in [2, 98]; also return their shares of variance."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, random_state=0)
    plane = pca.fit_transform(feat.astype(np.float64))
    low, high = plane.min(axis=0), plane.max(axis=0)
    first, second = (float(share) for share in pca.explained_variance_ratio_)
    return 2 + 96 * (plane - low) / np.where(high > low, high - low, 1), (first, second)


def _point(dataset: str, row: dict[str, str], place: np.ndarray, explained: bool) -> dict[str, Any]:
    index, kind = row["index"], ("real", "fake")[int(row["label"])]
    title = f"{row['forgery']}, video {row['video']}, fake probability {float(row['prob_fake']):.3f}, sample {index}"
    link = f"#sample={quote(f'{dataset}/{index}', safe='')}" if explained else ""
    return {"x": float(place[0]), "y": 100 - float(place[1]), "kind": kind, "title": title, "link": link}
