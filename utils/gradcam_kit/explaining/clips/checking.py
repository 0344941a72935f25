"""The check of clips' maps on their model: whether their hottest frames matter."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ...judge.check import MapCheck
from ...judge.clips.time import ClipMargins, check_frames
from ..explanation import Explanation
from .explanation import ClipExplanation
from .subject import ClipSubject, HasClipSubject


def margins_of(subject: ClipSubject, batch_size: int) -> ClipMargins:
    """Return a function from clips (N, T, 3, H, W) to margins (N,) float32, `batch_size` clips at a time."""
    return lambda clips: torch.cat([subject.margins(some) for some in clips.split(batch_size)])


class ClipChecker:
    """Checks clips' maps in time, with four forward passes per map."""

    def __init__(self, detector: HasClipSubject, batch_size: int) -> None:
        self.margins = margins_of(detector.as_clip_subject(), batch_size)

    def checks(
        self,
        images: Tensor,
        explanation: Explanation,
        seeds: Sequence[int],
        videos: Sequence[Hashable] | None = None,
    ) -> dict[str, list[MapCheck]]:
        """Check the maps of clips (N, T, 3, H, W): name → one check per clip; nothing for two-sided maps."""
        if "both" in explanation.target:
            return {}
        reals = explanation.reals if isinstance(explanation, ClipExplanation) else None
        how, found = (explanation.target, seeds, reals), {}
        for name, maps in explanation.layers.items():
            time = ClipExplanation.clip_maps(maps).time.float().cpu()
            found[name] = check_frames(self.margins, images, time, maps.empty.cpu(), *how)
        return found
