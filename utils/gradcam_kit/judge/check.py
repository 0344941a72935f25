"""The check of one image's map: contrast with real images, drop of the margin, agreement, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.real.contrast import CONTRASTS, neighbourhood_mean, scaled_mean
from ..engine.recipe import BALANCED, RESIDUAL, Recipe
from .choosing import TrialImages, TriedDetector, directions, maps_of_all
from .trial import CandidateMaps, Scorer, TokenFill, grid_of, hottest, on_trial_grid, random_patches

SUPPORTED, WEAK, CONTRADICTED, ARTEFACT = "supported", "weak", "contradicted", "artefact"
WORDS = (SUPPORTED, WEAK, CONTRADICTED, ARTEFACT)
# All thresholds of the verdict. With a bank: the contrast at the hottest patch, as a share of the largest; for a
# contrast map, how clear its place is, without and with the standardised contrast. Without a bank: the votes, and the
# drop beyond random patches as a share of the margin.
CLEAR_CONTRAST, SOME_CONTRAST = 0.6, 0.3
CLEAR_PLACE, CLEAR_STANDARD = 0.6, 0.45
REACH = 0.2  # evidence this near to the hottest patch is in the same place; a share of the grid's longer side
ONE_PLACE = 0.65  # with a smaller share in one place the evidence is spread, as if a whole image was upsampled
CLEAR_VOTES = 0.5
CLEAR_DROP, SOME_DROP, AGAINST = 0.25, 0.05, -0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCheck:
    """The verdict on one image's map, and the figures behind it; a figure is None if it was not computed.

    `word`: the verdict. `margin`: the margin in favour of the explained class. `contrast`: how much more the map's
    hottest patch adds to the score than the nearest real patches, as a share of the largest such value. `fall` and
    `random`: drop of the margin when the map's hottest patches, or as many random ones, are replaced. `mass`: the raw
    map's sum as a share of the margin. `votes`: share of the blocks whose own map is hottest at the same or a
    neighbouring patch. `others`: share of other methods' maps that are hottest there. `concentration`: share of the
    evidence near its hottest patch. `standard`: for a contrast map, share of the standardised contrast near the map's
    hottest patch.
    """

    word: str
    margin: float
    fall: float | None
    random: float | None
    mass: float | None = None
    votes: float | None = None
    others: float | None = None
    contrast: float | None = None
    concentration: float | None = None
    standard: float | None = None

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise ValueError(", ".join(WORDS))

    @property
    def verdict(self) -> str:
        """SUPPORTED, WEAK, CONTRADICTED or ARTEFACT."""
        return self.word

    @property
    def is_spread(self) -> bool:
        """Whether the evidence is spread, so that a hot spot does not locate it."""
        return self.concentration is not None and self.concentration < ONE_PLACE

    @property
    def sentence(self) -> str:
        """The verdict with its reasons: `Weak: replacing its hottest patches lowered the margin (1.2) by 0.02, …`."""
        facts = []
        if self.fall is not None and self.random is not None:
            facts.append(
                f"replacing its hottest patches {_moved(self.fall)} the margin ({self.margin:.3g}) by"
                f" {abs(self.fall):.3g}, replacing random ones {_moved(self.random)} it by {abs(self.random):.3g}"
            )
        if self.contrast is not None and self.contrast > 0:
            facts.append(f"its hottest patch has {self.contrast:.0%} of the largest contrast with real images")
        elif self.contrast is not None:
            facts.append("its hottest patch adds no more to the score than real patches do")
        if self.votes is not None:
            facts.append(f"{self.votes:.0%} of the blocks' maps peak there")
        if self.others is not None:
            facts.append(f"{self.others:.0%} of other methods' maps peak there")
        if self.standard is not None:
            facts.append(f"{self.standard:.0%} of the standardised contrast is near that patch")
        if self.is_spread:
            facts.append("the evidence is not in one place")
        return f"{self.word.capitalize()}: {'; '.join(facts)}" if facts else self.word.capitalize()


def _moved(drop: float) -> str:
    return "raised" if drop < 0 else "lowered"


class Evidence(NamedTuple):
    """The contrast of N images with real ones: signed maps (N, L, h, w) of L blocks, float32 on the CPU.

    `standard` (N, h, w): the standardised contrast, averaged over the blocks; None without a bank or a contrast map.
    `separates`: whether the detector separates real from fake; otherwise no map is supported.
    """

    blocks: Tensor
    standard: Tensor | None = None
    separates: bool = True

    def concentration(self) -> Tensor:
        """Return the share (N,) in [0, 1] of the contrast that is near its hottest patch.

        The contrast is sharpened less than in a map (`contrast.sharpened`): the spread is to be seen.
        """
        joint = scaled_mean(self.blocks.unbind(1))
        return concentration(joint.relu() * neighbourhood_mean(joint).relu().square())

    def near(self, raw: Tensor) -> Tensor | None:
        """Return the share (N,) in [0, 1] of the standardised contrast near the hottest patch of maps (N, h, w)."""
        return None if self.standard is None else _share_near(self.standard.relu(), _peak(raw)[0])

    def contrast(self, raw: Tensor) -> Tensor:
        """Return the 3 × 3 mean contrast (N,) at the hottest patch of maps (N, h, w), as a share of its maximum."""
        joint = neighbourhood_mean(scaled_mean(self.blocks.unbind(1)))
        largest = joint.flatten(1).amax(dim=1)
        there = _at(joint, _peak(raw)[0])
        return torch.where(largest > 0, there / largest, torch.full_like(largest, -1.0))

    def votes(self, raw: Tensor) -> Tensor:
        """Return the share (N,) of blocks whose contrast over 3 × 3 patches peaks at the same or an adjacent patch."""
        place, patch = _peak(raw)
        near = []
        for block in self.blocks.unbind(1):
            other, other_patch = _peak(neighbourhood_mean(block))
            near.append(((place - other).abs() <= torch.maximum(patch, other_patch) * 1.01).all(dim=1))
        return torch.stack(near).float().mean(dim=0)


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """Return the values (N,) of maps (N, h, w) at `places` (N, 2): row and column as shares of the image."""
    rows, columns = maps.shape[1:]
    row, column = (places[:, 0] * rows).long(), (places[:, 1] * columns).long()
    return maps.flatten(1).gather(1, (row * columns + column).unsqueeze(1)).squeeze(1)


def concentration(raw: Tensor) -> Tensor:
    """Return the share (N,) in [0, 1] of each map (N, h, w) that is near its hottest patch; 0 for an empty map."""
    return _share_near(raw, _peak(raw)[0])


def _share_near(maps: Tensor, places: Tensor) -> Tensor:
    """Return the share (N,) of each non-negative map (N, h, w) near `places` (N, 2); 0 for an empty map."""
    rows, columns = maps.shape[1:]
    reach = max(1, round(REACH * max(rows, columns)))
    row, column = (places[:, 0] * rows).long().unsqueeze(1), (places[:, 1] * columns).long().unsqueeze(1)
    near_row = (torch.arange(rows) - row).abs() <= reach
    near_column = (torch.arange(columns) - column).abs() <= reach
    whole = maps.flatten(1).sum(dim=1)
    near = (maps * (near_row.unsqueeze(2) & near_column.unsqueeze(1))).flatten(1).sum(dim=1)
    return near / torch.where(whole > 0, whole, torch.ones_like(whole))


def place_of(votes: float, concentration: float, standard: float | None) -> float:
    """Rate, in [0, 1], how clearly a contrast map's hottest patch is the place of the evidence.

    A contrast map is hottest at the largest contrast by construction, so the contrast there says nothing. The rating is
    the mean of the blocks' votes and the concentration. If the standardised contrast near the patch is known, half of
    the rating is that.
    """
    place = (votes + concentration) / 2
    return place if standard is None else (place + standard) / 2


def word_by_contrast(contrast: float, clear_place: bool | None, share: float | None, empty: bool) -> str:
    """Return the verdict with a bank.

    `share`: the drop beyond random patches as a share of the margin; None if not computed. `clear_place`: for a
    contrast map, whether its place (`place_of`) is clear; None for another map.
    """
    if empty:
        return ARTEFACT
    if share is not None and share <= AGAINST:
        return CONTRADICTED
    if clear_place is None:
        clear, some = contrast >= CLEAR_CONTRAST, contrast >= SOME_CONTRAST
    else:  # a contrast map is hottest at the largest contrast, so it is no artefact
        clear, some = clear_place and contrast > 0, True
    return SUPPORTED if clear else WEAK if some else ARTEFACT


def word_by_drop(share: float, votes: float | None, empty: bool) -> str:
    """Return the verdict without a bank, from the drop beyond random (as a share of the margin) and the votes.

    It is never SUPPORTED, because filling patches adds evidence of its own. WEAK: the margin drops somewhat, or half of
    the blocks agree. A tower without balanced maps has no votes.
    """
    if empty:
        return ARTEFACT
    if share <= AGAINST:
        return CONTRADICTED
    return WEAK if share >= SOME_DROP or (votes or 0.0) >= CLEAR_VOTES else ARTEFACT


def block_voters(blocks: Sequence[str]) -> list[Recipe]:
    """Return the recipe of every block's balanced map."""
    return [Recipe("hirescam", block, RESIDUAL, BALANCED) for block in blocks]


class Checked(NamedTuple):
    """N images whose maps are checked."""

    images: Tensor  # (N, 3, H, W), normalised
    target: Sequence[str]  # the target of each image's map: fake, real or margin
    margins: Tensor  # (N,): fake − real
    seeds: Sequence[int]  # per image, for its random patches
    evidence: Evidence | None = None  # None without a bank


class Voters(NamedTuple):
    """The maps whose agreement counts. Maps that are not finite, or that the detector lacks, do not vote."""

    blocks: Sequence[Recipe]
    others: Sequence[Recipe]  # the map's own method does not vote


def check_maps(
    detector: TriedDetector,
    checked: Checked,
    maps: Mapping[str, CandidateMaps],
    method: str,
    fill: Tensor | TokenFill,
    voters: Voters,
) -> dict[str, list[MapCheck]]:
    """Check the maps of N images, by layer, made by `method`: one check per layer and image.

    `fill` replaces patches, as in `trial.Fills`. The voters are used only without a bank.
    """
    images, direction = checked.images, directions(checked.target)
    towards = checked.margins.float().cpu() * direction
    scorer = Scorer(detector.margins, direction)
    random_drops: dict[tuple[int, int], Tensor] = {}  # by grid: layers with the same grid share them
    agree = _agreement_of(detector, checked, method, voters)
    checks = {}
    for layer, heat in maps.items():
        patches = hottest(*heat)
        grid = grid_of(patches)
        if grid in random_drops:
            (drops,) = scorer.drops(towards, images, fill, [patches])
        else:
            drawn = torch.cat([random_patches(1, grid, seed) for seed in checked.seeds])
            drops, random_drops[grid] = scorer.drops(towards, images, fill, [patches, drawn])
        checks[layer] = _checks_of(checked, towards, heat, method, (drops, random_drops[grid]), agree(heat))
    return checks


def verdicts(checked: Checked, maps: Mapping[str, CandidateMaps], method: str) -> dict[str, list[MapCheck]]:
    """Check the maps of N images only by their contrast with real images, without any forward pass."""
    towards = checked.margins.float().cpu() * directions(checked.target)
    return {layer: _checks_of(checked, towards, heat, method) for layer, heat in maps.items()}


Shares = Sequence[float | None]  # by image
Agreed = tuple[Shares, Shares]  # of blocks, and of other methods, that agree


def _checks_of(
    checked: Checked,
    towards: Tensor,
    heat: CandidateMaps,
    method: str,
    drops: tuple[Tensor, Tensor] | None = None,
    agreed: Agreed | None = None,
) -> list[MapCheck]:
    """Check one layer's maps. `drops`: for the hottest and for random patches, (N,) each, if computed."""
    evidence, raw, none = checked.evidence, on_trial_grid(heat.raw), [None] * len(heat.raw)
    votes, others = agreed or (none, none)
    contrasts: Shares = none
    nearby: Shares = none
    standard: Shares = none
    if evidence is not None:
        contrasts, votes = evidence.contrast(raw).tolist(), evidence.votes(raw).tolist()
        nearby = evidence.concentration().tolist()
        near_peak = evidence.near(raw) if method in CONTRASTS else None
        standard = none if near_peak is None else near_peak.tolist()
    found = []
    for i, (margin, mass) in enumerate(zip(towards.tolist(), heat.raw.flatten(1).sum(dim=1).tolist(), strict=True)):
        drop, random = (float(of[i]) for of in drops) if drops else (None, None)
        share = None if drop is None or random is None else (drop - random) / abs(margin) if margin else 0.0
        empty = bool(heat.empty[i])
        if evidence is None:
            word = word_by_drop(share or 0.0, votes[i], empty)
        else:
            near, clear = nearby[i] or 0.0, None
            if method in CONTRASTS:
                enough = CLEAR_PLACE if standard[i] is None else CLEAR_STANDARD
                clear = place_of(votes[i] or 0.0, near, standard[i]) >= enough
            word = word_by_contrast(contrasts[i] or 0.0, clear, share, empty)
            # Not supported: evidence for real, since a bank of real images shows only what is not fake; any map of a
            # detector that does not separate; and spread evidence, since no place is the right one.
            doubtful = checked.target[i] == "real" or not evidence.separates or near < ONE_PLACE
            word = WEAK if word == SUPPORTED and doubtful else word
        found.append(
            MapCheck(
                word=word,
                margin=margin,
                fall=drop,
                random=random,
                mass=mass / abs(margin) if margin else None,
                votes=votes[i],
                others=others[i],
                contrast=contrasts[i],
                concentration=nearby[i],
                standard=standard[i],
            )
        )
    return found


def _agreement_of(
    detector: TriedDetector, checked: Checked, method: str, voters: Voters
) -> Callable[[CandidateMaps], Agreed | None]:
    """Return the function that computes the voters' agreement with a map; None with a bank."""
    if checked.evidence is not None:
        return lambda heat: None
    others = [one for one in voters.others if one.method != method]
    given = TrialImages(checked.images, checked.target, [None] * len(checked.images))
    heats, kept, _ = maps_of_all(detector, given, [*voters.blocks, *others])
    blocks, methods = ([heats[one] for one in some if one in heats] for some in (voters.blocks, others))
    return lambda heat: (_agreement(heat, blocks, kept), _agreement(heat, methods, kept))


def _agreement(heat: CandidateMaps, voters: Sequence[CandidateMaps], kept: list[int]) -> list[float | None]:
    """Return per image the share of voters whose hottest patch is the map's or a neighbour; None without voters.

    The voters' maps belong to the images at the positions `kept`.
    """
    found: list[float | None] = [None] * len(heat.raw)
    if not voters or not kept:
        return found
    place, patch = _peak(heat.raw[kept])
    near = []
    for voter in voters:
        other, other_patch = _peak(voter.raw)
        reach = torch.maximum(patch, other_patch) * 1.01  # one patch of the coarser grid, with a tolerance for rounding
        near.append(((place - other).abs() <= reach).all(dim=1) & ~voter.empty)
    for position, share in zip(kept, torch.stack(near).float().mean(dim=0).tolist(), strict=True):
        found[position] = share
    return found


def _peak(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hottest patch's centre (N, 2) and a patch's size (2,), rows and columns as shares of the image."""
    raw = on_trial_grid(raw)
    size = torch.tensor(raw.shape[1:], dtype=torch.float32)
    place = raw.flatten(1).argmax(dim=1)
    rows_columns = torch.stack([torch.div(place, raw.shape[2], rounding_mode="floor"), place % raw.shape[2]], dim=1)
    return (rows_columns + 0.5) / size, 1 / size
