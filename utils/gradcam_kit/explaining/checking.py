"""The check of finished maps on their model: how reliable each one is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..engine.backward import can_balance
from ..judge.check import Checked, Evidence, MapCheck, Voters, block_voters, check_maps, verdicts
from ..judge.choosing import in_batches
from ..judge.trial import CALM, FILLS, MEAN_COLOUR, CandidateMaps
from .explanation import Explanation
from .real_tokens import tried

if TYPE_CHECKING:
    from .subject import HasSubject, Subject

NO_VOTERS = Voters([], [])


class MapChecker:
    """Checks the maps of a run's samples.

    Patches are replaced by their nearest real tokens; without a bank by the mean colour, or a fill that moves the
    detector less. On the embedded detector the mean colour separates right from wrong maps better than mirroring.
    """

    def __init__(self, detector: HasSubject, batch_size: int) -> None:
        subject = detector.as_subject()
        self.tried = tried(subject, in_batches(batch_size))
        moved = {fill: share for fill, share in subject.choice.moved.items() if fill in FILLS} if subject.choice else {}
        calm = not moved or moved.get(MEAN_COLOUR, 0.0) <= CALM
        self.fill = MEAN_COLOUR if calm else min(moved, key=lambda fill: moved[fill])
        self.voters = NO_VOTERS
        if subject.bank is None:
            blocks = block_voters(subject.tower.blocks) if can_balance(subject.tower) else []
            self.voters = Voters(blocks, subject.candidates())

    def checks(
        self,
        images: Tensor,
        explanation: Explanation,
        seeds: Sequence[int],
        videos: Sequence[Hashable] | None = None,
    ) -> Mapping[str, list[MapCheck]]:
        """Check the maps of normalised images (N, 3, H, W): layer → one check per image; nothing for two-sided maps.

        `videos`: each image's video, whose own frames the bank skips.
        """
        exchange = self.tried.exchange
        fill = FILLS[self.fill](images) if exchange is None else exchange(images, videos, explanation.exchange)
        return _of_all(
            explanation,
            seeds,
            lambda checked, maps, method: check_maps(self.tried, checked, maps, method, fill, self.voters),
        )


def verdicts_of(explanation: Explanation) -> dict[str, list[MapCheck]]:
    """Return the checks by layer that follow from the explanation's evidence, without a pass; empty if none."""
    if explanation.evidence is None:
        return {}
    return _of_all(explanation, range(len(explanation.images)), verdicts)


def check_explanation(
    subject: Subject, videos: Sequence[Hashable] | None, explanation: Explanation
) -> dict[str, list[MapCheck]]:
    """Compute `Explanation.check`, with the same random patches at every call."""
    checker = MapChecker(subject, len(explanation.images))
    return dict(checker.checks(explanation.images, explanation, range(len(explanation.images)), videos))


def _of_all(
    explanation: Explanation,
    seeds: Sequence[int],
    check: Callable[[Checked, Mapping[str, CandidateMaps], str], dict[str, list[MapCheck]]],
) -> dict[str, list[MapCheck]]:
    """Apply `check` to every recipe's maps; return the checks by the map's name."""
    if "both" in explanation.target:
        return {}
    margins = explanation.head.margin(explanation.logits.float())
    blocks, standard = explanation.evidence, explanation.standard
    evidence = None
    if blocks is not None:
        standard = None if standard is None else standard.float().cpu()
        evidence = Evidence(blocks.float().cpu(), standard, explanation.separates)
    checked = Checked(explanation.images, explanation.target, margins, seeds, evidence)
    found: dict[str, list[MapCheck]] = {}
    for made in explanation.made:
        names = {layer: name for name, (one, layer) in explanation.entries.items() if one is made}
        maps = {names[layer]: CandidateMaps(of.raw.float().cpu(), of.empty.cpu()) for layer, of in made.layers.items()}
        found.update(check(checked, maps, made.recipe.method))
    return found
