"""A loaded detector as `judge` asks for it: maps and margins of decoded images, and checks of single maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.layers import block_names
from ..explain.explanation import Explanation
from ..judge.candidates import can_balance
from ..judge.check import FILLS, MapCheck, block_voters, check_maps
from ..judge.choosing import InParts, TriedDetector, in_batches
from ..judge.fills import MEAN_COLOUR
from ..judge.trial import CALM, Heat
from .detector import LoadedDetector


def tried(
    detector: LoadedDetector, in_parts: InParts[Any], between: Callable[[], None] = lambda: None
) -> TriedDetector:
    """`detector` for a trial; `between` is called before each batch of margins, and may raise."""
    model = detector.model

    def margins(images: Tensor) -> Tensor:
        def work(part: slice) -> Tensor:
            between()
            with torch.no_grad(), detector.autocast():
                prediction, head = model.head_reader.read(model(detector.inputs(images[part]), inference=True))
            return head.margin(prediction["cls"].float())

        return torch.cat(in_parts(work, len(images))) if len(images) else torch.empty(0)

    def capture(images: Tensor, target: Sequence[str], **asked: Any) -> Any:
        height, width = images.shape[2:]
        size = model.patch_grid(height, width) or (height, width)
        with detector.autocast():
            return model.capture({"image": images}, target=list(target), map_size=size, **asked)

    return TriedDetector(capture, margins, in_parts)


class MapChecker:
    """Checks the maps of a run's samples. Patches get the mean colour, or a fill that the detector minds less.

    On the embedded detector the mean colour tells right from wrong maps better than the mirrored image does.
    """

    def __init__(self, detector: LoadedDetector, batch_size: int) -> None:
        self.tried = tried(detector, in_batches(batch_size))
        choice = detector.model.gradcam_choice
        moved = {fill: share for fill, share in choice.moved.items() if fill in FILLS} if choice else {}
        calm = moved.get(MEAN_COLOUR, 0.0) <= CALM
        self.fill = MEAN_COLOUR if calm else min(moved, key=lambda fill: moved[fill])
        tower = detector.model.explained_tower
        self.voters = block_voters(block_names(tower)) if can_balance(tower) else []
        self.others = detector.model.gradcam_candidates()

    def checks(self, images: Tensor, explanation: Explanation, seeds: Sequence[int]) -> Mapping[str, list[MapCheck]]:
        """Layer → a check for each of the images (N, 3, H, W), as the detector takes them; none of two-sided maps."""
        if "both" in explanation.target:
            return {}
        return check_maps(
            self.tried,
            images,
            explanation.target,
            explanation.head.margin(explanation.logits.float()),
            {name: Heat(maps.raw.float().cpu(), maps.empty.cpu()) for name, maps in explanation.layers.items()},
            method=explanation.method,
            fill=self.fill,
            seeds=seeds,
            voters=self.voters,
            others=self.others,
        )
