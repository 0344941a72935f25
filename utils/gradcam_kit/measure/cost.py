"""How long --evaluate_explanations will take, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from torch import Tensor

from ..model.detector import LoadedDetector
from .controls import CONTROLS
from .deletion import FILLS, SHARES
from .saco import GROUPS
from .segment_attack import STEPS, TOP

BACKWARD = 3  # forward passes that a pass with gradients counts for


def expected_passes(
    frames: Mapping[str, int], maps: int, patches: int, levels: int, left_out: Collection[str]
) -> dict[str, int]:
    """Measurement → forward passes of one image, at most.

    `frames`: how many each measurement takes; `maps`: those that are examined, beside the controls; `levels`: how often
    the weights are randomised.
    """
    shown = maps + len(CONTROLS)
    passes = {
        "deletion": frames["deletion"] * len(FILLS) * 2 * len(SHARES) * shown,
        "saco": frames["saco"] * (GROUPS + 1) * shown,
        "transplant": frames["transplant"] * 2 * patches,
        "attack": frames["attack"] * len(TOP) * STEPS * BACKWARD * shown,
        "randomisation": frames["randomisation"] * levels * BACKWARD,
    }
    return {name: count for name, count in passes.items() if name not in left_out}


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
