"""The head's input for every frame (--save_features), and the file `<dataset>/features.npz`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..base.files import whole_file
from .database import RunDatabase

FEATURES = "features.npz"


def features_of(database: RunDatabase, dataset: str) -> dict[int, np.ndarray]:
    """Return index → features (D,) float32 of each frame, ascending; empty if the run saved none."""
    rows = database.rows("feature", "WHERE dataset = ?", dataset)
    return {row[1]: np.frombuffer(row[2], np.float32) for row in rows}


def write_features(database: RunDatabase, dataset: str, folder: Path) -> None:
    """Write features.npz, completely or not at all, if the run saved features.

    It holds `feat` (N, D) float32; `index`; `label` (0 real, 1 fake); `label_spe`, the forgery's number in
    `forgery_names`; and the strings `forgery`, `video`, `path`. DF40's t-SNE script reads `feat` and `label_spe`.
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
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes them for its own flag


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array([value.encode("utf-8", "backslashreplace").decode() for value in values])
