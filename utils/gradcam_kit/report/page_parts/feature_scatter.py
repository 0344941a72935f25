"""The features of a dataset in the plane, for the page: points of an SVG of 100 × 100, each with its sample's link."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np

from ...store.features_file import read_features
from ...store.read_run import RunOnDisk, prediction_rows

POINTS = 3_000  # of a dataset; of more every k-th, and all explained samples


def feature_views(run: RunOnDisk) -> list[dict[str, Any]]:
    """Of the datasets that have a `features.npz`; `shares`: of the variance, along each axis.

    A point has a `link` that opens its sample, "" where it was not explained. Raises InputError for a damaged file.
    """
    views = []
    for data in run.datasets:
        features = read_features(data.folder)
        if features is None or len(features.places) < 3:
            continue
        plane, shares = principal_plane(features.feat)
        rows = {int(row["index"]): row for row in prediction_rows(data.folder)}
        explained = {sample.index for sample in data.samples}
        step = -(-len(plane) // POINTS)
        points = [
            _point(data.name, rows[int(index)], place, int(index) in explained)
            for i, (index, place) in enumerate(zip(features.places, plane, strict=True))
            if int(index) in rows and (i % step == 0 or int(index) in explained)
        ]
        views.append({"dataset": data.name, "points": points, "frames": len(plane), "shares": shares})
    return views


def principal_plane(feat: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """(N, D) → (N, 2) in [2, 98], the first two principal components, and their shares of the variance."""
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
