"""Temporal consistency of maps over a video: the correlation of the raw maps of neighbouring frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


class TemporalConsistency:
    """Takes the frames of one video in order. A frame without maps, or an empty map, breaks the sequence."""

    def __init__(self) -> None:
        self._before: dict[str, np.ndarray] = {}
        self._correlations: dict[str, list[float]] = {}

    def add(self, raw_maps: Mapping[str, np.ndarray]) -> None:
        """The next frame's raw maps (h, w) by layer, empty ones left out."""
        now = {layer: raw.astype(np.float64).ravel() for layer, raw in raw_maps.items()}
        for layer, values in now.items():
            self._correlations.setdefault(layer, [])
            if layer in self._before:
                self._correlations[layer].append(float(np.corrcoef(self._before[layer], values)[0, 1]))
        self._before = now

    def consistency(self) -> dict[str, float]:
        """Layer → mean Pearson correlation of neighbouring frames; NaN without a pair."""
        return {layer: float(np.mean(row)) if row else math.nan for layer, row in self._correlations.items()}
