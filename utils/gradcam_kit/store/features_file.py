"""`<dataset>/features.npz`: what the detector's head reads of every frame, with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base.errors import InputError
from ..base.files import whole_file
from ..base.text import one_line
from ..data.frame import Frame

FEATURES = "features.npz"


class Features(NamedTuple):
    """`feat` (N, D) float32 of the frames with the numbers `places` (N,), ascending."""

    feat: np.ndarray
    places: np.ndarray


def write_features(folder: Path, features: Features, frames: Sequence[Frame]) -> None:
    """Write the file, whole or not at all.

    `feat` (N, D), `index`, `label` 0 real and 1 fake, `label_spe` the forgery's number in `forgery_names`, and as
    strings `forgery`, `video` and `path`. `feat` and `label_spe` are what DF40's t-SNE script reads.
    """
    chosen = [frames[int(i)] for i in features.places]
    forgeries = list(dict.fromkeys(frame.forgery for frame in frames))
    arrays = {
        "feat": features.feat,
        "index": features.places,
        "label": np.array([frame.label for frame in chosen]),
        "label_spe": np.array([forgeries.index(frame.forgery) for frame in chosen]),
        "forgery_names": _strings(forgeries),
        **{name: _strings([getattr(frame, name) for frame in chosen]) for name in ("forgery", "video", "path")},
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
