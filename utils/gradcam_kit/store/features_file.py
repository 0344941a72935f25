"""`<dataset>/features.npz`: what the detector's head reads of every frame, with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.errors import InputError
from ..base.files import whole_file
from ..base.text import one_line
from .database import RunDatabase

FEATURES = "features.npz"


class Features(NamedTuple):
    """`feat` (N, D) float32 of the frames with the numbers `places` (N,), ascending."""

    feat: np.ndarray
    places: np.ndarray


def write_features(database: RunDatabase, dataset: str, folder: Path) -> None:
    """Write the file, whole or not at all, where the run has kept features.

    `feat` (N, D), `index`, `label` 0 real and 1 fake, `label_spe` the forgery's number in `forgery_names`, and as
    strings `forgery`, `video` and `path`. `feat` and `label_spe` are what DF40's t-SNE script reads.
    """
    found = {
        row[1]: np.frombuffer(row[2], np.float32) for row in database.rows("feature", "WHERE dataset = ?", dataset)
    }
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


def read_features(folder: Path) -> Features | None:
    """The file of a dataset's folder; None where there is none. Raises InputError for a damaged one."""
    path = folder / FEATURES
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            features = Features(file["feat"], file["index"])
    except Exception as error:  # zipfile's, NumPy's and zlib's errors for damaged bytes
        raise InputError(f"{path}: cannot be read ({one_line(error)}); remove it, or run again") from error
    if features.feat.ndim != 2 or len(features.feat) != len(features.places) or not np.isfinite(features.feat).all():
        raise InputError(f"{path}: holds no finite table of features; remove it, or run again")
    return features
