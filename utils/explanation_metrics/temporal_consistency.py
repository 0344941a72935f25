"""How steady maps are over a video: the correlation of the raw maps of neighbouring frames."""

from __future__ import annotations

import math
from typing import Mapping

import numpy as np


class Steadiness:
    """Takes the frames of one video in order. A frame without maps, or an empty map, breaks the row."""

    def __init__(self) -> None:
        self._before: dict[str, np.ndarray] = {}
        self._correlations: dict[str, list[float]] = {}

    def add(self, raw_maps: Mapping[str, np.ndarray]) -> None:
        """The next frame's raw maps (h, w) by layer, empty ones left out."""
        now = {name: raw.astype(np.float64).ravel() for name, raw in raw_maps.items()}
        for name, one in now.items():
            self._correlations.setdefault(name, [])
            if name in self._before:
                self._correlations[name].append(float(np.corrcoef(self._before[name], one)[0, 1]))
        self._before = now

    def consistency(self) -> dict[str, float]:
        """Layer → mean Pearson correlation of neighbours; NaN without a pair."""
        return {name: float(np.mean(row)) if row else math.nan for name, row in self._correlations.items()}
