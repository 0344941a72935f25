"""How often --evaluate_explanations asks the detector, and how long that will take, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from ..judge.controls import CONTROLS
from ..judge.deletion import GROUPS, SHARES
from ..model.detector import LoadedDetector
from .perturbation import FILLS
from .segment_attack import STEPS, TOP

BACKWARD = 3  # forward passes that a pass with gradients counts for


class Measurement(NamedTuple):
    """What runs the detector again and again, and so takes only some `images`, evenly over all of them.

    `passes`: forward passes of one image, at most, by the number of maps and controls, of patches, and of blocks.
    """

    images: int
    passes: Callable[[int, int, int], int]


MEASUREMENTS = {
    "deletion": Measurement(200, lambda maps, patches, blocks: len(FILLS) * 2 * len(SHARES) * maps),
    "saco": Measurement(200, lambda maps, patches, blocks: (GROUPS + 1) * maps),
    "transplant": Measurement(48, lambda maps, patches, blocks: 2 * patches),
    "attack": Measurement(48, lambda maps, patches, blocks: len(TOP) * STEPS * BACKWARD * maps),
    "randomisation": Measurement(64, lambda maps, patches, blocks: (blocks + 2) * BACKWARD),
}


def expected_passes(images: int, maps: int, patches: int, blocks: int, left_out: Collection[str]) -> dict[str, int]:
    """Measurement → forward passes of one image, at most; `maps` are examined, beside the controls."""
    return {
        name: min(images, one.images) * one.passes(maps + len(CONTROLS), patches, blocks)
        for name, one in MEASUREMENTS.items()
        if name not in left_out
    }


def announcement(detector: LoadedDetector, pixels: Tensor, passes: Mapping[str, int]) -> str:
    """One line, with the time that a batch takes on this machine."""
    detector.predict(pixels)  # once to warm up
    start = time.perf_counter()
    detector.predict(pixels)
    seconds = (time.perf_counter() - start) / len(pixels) * sum(passes.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in passes.items())
    return (
        f"measuring the maps: up to {sum(passes.values()):,} forward passes of one image, at most about"
        f" {in_words(seconds)} here ({parts}); --leave_out NAME makes it shorter"
    )


def in_words(seconds: float) -> str:
    """`50 s`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
