"""What the detector's head reads of every frame (--save_features), and `<dataset>/features.npz`, which holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.files import whole_file
from .database import RunDatabase

FEATURES = "features.npz"


def features_of(database: RunDatabase, dataset: str) -> dict[int, np.ndarray]:
    """Index of a frame → its features (D,) float32, ascending; empty where the run has kept none."""
    rows = database.rows("feature", "WHERE dataset = ?", dataset)
    return {row[1]: np.frombuffer(row[2], np.float32) for row in rows}


def write_features(database: RunDatabase, dataset: str, folder: Path) -> None:
    """Write the file, whole or not at all, where the run has kept features.

    `feat` (N, D), `index`, `label` 0 real and 1 fake, `label_spe` the forgery's number in `forgery_names`, and as
    strings `forgery`, `video` and `path`. `feat` and `label_spe` are what DF40's t-SNE script reads.
    """
    found = features_of(database, dataset)
    if not found:
        return
    frames = list(database.rows("frame", "WHERE dataset = ?", dataset))
    chosen = [row for row in frames if row[1] in found]
    forgeries = list(dict.fromkeys(row[3] for row in frames))
    arrays = {
        "feat": np.stack([found[row[1]] for row in chosen]),
        "index": np.array([row[1] for row in chosen]),
        "label": np.array([row[5] for row in chosen]),
        "label_spe": np.array([forgeries.index(row[3]) for row in chosen]),
        "forgery_names": _strings(forgeries),
        **{name: _strings([row[i] for row in chosen]) for name, i in (("forgery", 3), ("video", 4), ("path", 2))},
    }
    with whole_file(folder / FEATURES) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own flag


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array([value.encode("utf-8", "backslashreplace").decode() for value in values])
