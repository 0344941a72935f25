"""Can this map of this image be relied on? Figures by contrast, by drop and by agreement, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.real.contrast import CONTRASTS, neighbourhood_mean, scaled_mean, sharpened
from ..engine.recipe import BALANCED, RESIDUAL, Recipe
from .choosing import TrialImages, TriedDetector, directions, maps_of_all
from .trial import Heat, Scorer, TokenFill, grid_of, hottest, on_trial_grid, random_patches

SUPPORTED, WEAK, CONTRADICTED, ARTEFACT = "supported", "weak", "contradicted", "artefact"
WORDS = (SUPPORTED, WEAK, CONTRADICTED, ARTEFACT)
# Every threshold of the verdict: the contrast at the hottest patch, as a share of its largest; of a contrast map how
# clear its place is, without the standardised contrast and with it; without a bank the votes, and the drop of the
# margin with the hottest patches replaced, beyond random ones, as a share of it.
CLEAR_CONTRAST, SOME_CONTRAST = 0.6, 0.3
CLEAR_PLACE, CLEAR_STANDARD = 0.6, 0.45
REACH = 0.2  # of the grid's longer side: so near to the hottest patch evidence counts as being in one place
ONE_PLACE = 0.65  # of the evidence: below it there is no one place, as where a whole image was upsampled or denoised
CLEAR_VOTES = 0.5
CLEAR_DROP, SOME_DROP, AGAINST = 0.25, 0.05, -0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCheck:
    """What speaks for one map of one image.

    `word`: the verdict. `margin`: towards the class that is explained, as the detector gives it. `contrast`: what the
    map's hottest patch adds to the score compared with its nearest real ones, as a share of the largest there is.
    `fall` and `random`: the margin's drop once the map's hottest patches, and as many random ones, are replaced.
    `mass`: the raw map's sum as a share of the margin. `votes`: share of the tower's blocks whose own map is hottest at
    the same patch or one next to it. `others`: the same of other methods' maps. `concentration`: the share of the
    evidence that lies near its own hottest patch. `standard`: the share of the standardised contrast that lies near the
    map's hottest patch, of a contrast map. None: not asked for, there are none, or the margin is 0.
    """

    word: str
    margin: float
    fall: float | None
    random: float | None
    mass: float | None
    votes: float | None
    others: float | None
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
        """Whether the evidence is in no one place, so that a hot spot shows where the detector looked and no more."""
        return self.concentration is not None and self.concentration < ONE_PLACE

    @property
    def sentence(self) -> str:
        """The verdict and why: `Weak: replacing its hottest patches lowered the margin by 0.02 (random patches: …)`."""
        facts = []
        if self.fall is not None and self.random is not None:
            facts.append(
                f"replacing its hottest patches {_moved(self.fall)} the margin of {self.margin:.3g} by"
                f" {abs(self.fall):.3g} (random patches {_moved(self.random)} it by {abs(self.random):.3g})"
            )
        if self.contrast is not None and self.contrast > 0:
            facts.append(f"its hottest patch adds {self.contrast:.0%} of the largest contrast with real images")
        elif self.contrast is not None:
            facts.append("its hottest patch adds nothing compared with real images")
        if self.votes is not None:
            facts.append(f"{self.votes:.0%} of the blocks are hottest there")
        if self.others is not None:
            facts.append(f"{self.others:.0%} of other methods' maps agree")
        if self.standard is not None:
            facts.append(f"{self.standard:.0%} of what stands out from real images lies near it")
        if self.is_spread:
            facts.append("the evidence is spread: no one place")
        return f"{self.word.capitalize()}: {'; '.join(facts)}" if facts else self.word.capitalize()


def _moved(drop: float) -> str:
    return "raised" if drop < 0 else "lowered"


class Evidence(NamedTuple):
    """What the contrast with real images says of N images: the signed maps (N, L, h, w) of L blocks, on the CPU.

    `standard` (N, h, w): the standardised contrast, averaged over the blocks; None: there are no neighbours to ask.
    `separates`: whether the detector tells real from fake at all; no map of one that does not is supported.
    """

    blocks: Tensor
    standard: Tensor | None = None
    separates: bool = True

    def concentration(self) -> Tensor:
        """(N,) in [0, 1]: the share of the sharpened contrast that lies near its own hottest patch."""
        return concentration(sharpened(scaled_mean(self.blocks.unbind(1))))

    def near(self, raw: Tensor) -> Tensor | None:
        """(N,) in [0, 1]: the share of the standardised contrast that lies near the hottest patch of maps (N, h, w)."""
        return None if self.standard is None else _share_near(self.standard.relu(), _peak(raw)[0])

    def contrast(self, raw: Tensor) -> Tensor:
        """(N,): the contrast, over 3 × 3 patches, at the hottest patch of maps (N, h, w); a share of its largest."""
        joint = neighbourhood_mean(scaled_mean(self.blocks.unbind(1)))
        largest = joint.flatten(1).amax(dim=1)
        there = _at(joint, _peak(raw)[0])
        return torch.where(largest > 0, there / largest, torch.full_like(largest, -1.0))

    def votes(self, raw: Tensor) -> Tensor:
        """(N,): the share of the blocks whose own contrast, over 3 × 3 patches, is largest there or one patch away."""
        place, patch = _peak(raw)
        near = []
        for block in self.blocks.unbind(1):
            other, other_patch = _peak(neighbourhood_mean(block))
            near.append(((place - other).abs() <= torch.maximum(patch, other_patch) * 1.01).all(dim=1))
        return torch.stack(near).float().mean(dim=0)


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """The values (N,) of maps (N, h, w) at `places` (N, 2), rows and columns in shares of the image."""
    rows, columns = maps.shape[1:]
    row, column = (places[:, 0] * rows).long(), (places[:, 1] * columns).long()
    return maps.flatten(1).gather(1, (row * columns + column).unsqueeze(1)).squeeze(1)


def concentration(raw: Tensor) -> Tensor:
    """(N,) in [0, 1]: the share of each map (N, h, w) that lies near its hottest patch; 0 of an empty one."""
    return _share_near(raw, _peak(raw)[0])


def _share_near(maps: Tensor, places: Tensor) -> Tensor:
    """(N,): the share of each map (N, h, w), nowhere below 0, that lies near `places` (N, 2); 0 of an empty one."""
    rows, columns = maps.shape[1:]
    reach = max(1, round(REACH * max(rows, columns)))
    row, column = (places[:, 0] * rows).long().unsqueeze(1), (places[:, 1] * columns).long().unsqueeze(1)
    near_row = (torch.arange(rows) - row).abs() <= reach
    near_column = (torch.arange(columns) - column).abs() <= reach
    whole = maps.flatten(1).sum(dim=1)
    near = (maps * (near_row.unsqueeze(2) & near_column.unsqueeze(1))).flatten(1).sum(dim=1)
    return near / torch.where(whole > 0, whole, torch.ones_like(whole))


def place_of(votes: float, concentration: float, standard: float | None) -> float:
    """How clearly a contrast map's hottest patch is the place of the evidence, in [0, 1].

    A contrast map is hottest where the contrast is, so the contrast there says nothing. Its blocks' votes and the
    evidence's concentration do; so does the standardised contrast near it, which weighs as much as both.
    """
    place = (votes + concentration) / 2
    return place if standard is None else (place + standard) / 2


def word_by_contrast(contrast: float, clear_place: bool | None, share: float | None, empty: bool) -> str:
    """The verdict where there is a bank.

    `share`: the drop beyond random as a share of the margin, None where it was not asked for. `clear_place`: of a
    contrast map, whether its place (`place_of`) is clear; None of another map.
    """
    if empty:
        return ARTEFACT
    if share is not None and share <= AGAINST:
        return CONTRADICTED
    if clear_place is None:
        clear, some = contrast >= CLEAR_CONTRAST, contrast >= SOME_CONTRAST
    else:  # a contrast map is hottest where the contrast is, so it is no artefact
        clear, some = clear_place, True
    return SUPPORTED if clear else WEAK if some else ARTEFACT


def word_by_drop(share: float, votes: float | None, empty: bool) -> str:
    """The verdict where there is no bank, from the drop beyond random as a share of the margin, and from the votes.

    Never SUPPORTED: what replaces the patches is evidence itself. Weak: it costs some of the margin, or half of the
    blocks agree. A tower without balanced maps has no votes.
    """
    if empty:
        return ARTEFACT
    if share <= AGAINST:
        return CONTRADICTED
    return WEAK if share >= SOME_DROP or (votes or 0.0) >= CLEAR_VOTES else ARTEFACT


def block_voters(blocks: Sequence[str]) -> list[Recipe]:
    """The balanced map of every block."""
    return [Recipe("hirescam", block, RESIDUAL, BALANCED) for block in blocks]


class Checked(NamedTuple):
    """N images whose maps are checked."""

    images: Tensor  # (N, 3, H, W), as the detector takes them
    target: Sequence[str]  # what each image's map explains: fake, real or margin
    margins: Tensor  # (N,): fake − real
    seeds: Sequence[int]  # of each image's random patches
    evidence: Evidence | None = None  # where there is a bank


class Voters(NamedTuple):
    """The maps whose agreement is asked for. Those that are not finite, or that the detector lacks, do not vote."""

    blocks: Sequence[Recipe]
    others: Sequence[Recipe]  # of these, those of another method than the map's vote


def check_maps(
    detector: TriedDetector,
    checked: Checked,
    maps: Mapping[str, Heat],
    method: str,
    fill: Tensor | TokenFill,
    voters: Voters,
) -> dict[str, list[MapCheck]]:
    """One check for each image of each of `maps`: by layer, of these images, by `method`.

    `fill`: what replaces patches, as in `trial.Fills`. The voters are asked only where there is no evidence.
    """
    images, direction = checked.images, directions(checked.target)
    towards = checked.margins.float().cpu() * direction
    scorer = Scorer(detector.margins, direction)
    random_drops: dict[tuple[int, int], Tensor] = {}  # by grid: layers of one grid share them
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


def verdicts(checked: Checked, maps: Mapping[str, Heat], method: str) -> dict[str, list[MapCheck]]:
    """As `check_maps`, from the evidence alone: it asks the detector nothing, and knows of no drop."""
    towards = checked.margins.float().cpu() * directions(checked.target)
    return {layer: _checks_of(checked, towards, heat, method) for layer, heat in maps.items()}


Agreed = tuple[Sequence[float | None], Sequence[float | None]]  # of blocks and of other methods, by image


def _checks_of(
    checked: Checked,
    towards: Tensor,
    heat: Heat,
    method: str,
    drops: tuple[Tensor, Tensor] | None = None,
    agreed: Agreed | None = None,
) -> list[MapCheck]:
    """The checks of one layer's maps. `drops`: of the hottest and of random patches, (N,) each, where asked for."""
    evidence, raw = checked.evidence, on_trial_grid(heat.raw)
    contrasts = None if evidence is None else evidence.contrast(raw).tolist()
    votes, others = agreed or ([None] * len(raw), [None] * len(raw))
    nearby: list[float | None] = [None] * len(raw)
    standard: list[float | None] = [None] * len(raw)
    if evidence is not None:
        votes, nearby = evidence.votes(raw).tolist(), evidence.concentration().tolist()
        near_peak = evidence.near(raw) if method in CONTRASTS else None
        standard = standard if near_peak is None else near_peak.tolist()
    found = []
    for i, (margin, mass) in enumerate(zip(towards.tolist(), heat.raw.flatten(1).sum(dim=1).tolist(), strict=True)):
        drop, random = (float(of[i]) for of in drops) if drops else (None, None)
        share = None if drop is None or random is None else (drop - random) / abs(margin) if margin else 0.0
        empty = bool(heat.empty[i])
        if contrasts is not None:
            near = nearby[i] or 0.0
            clear = None
            if method in CONTRASTS:
                enough = CLEAR_PLACE if standard[i] is None else CLEAR_STANDARD
                clear = place_of(votes[i] or 0.0, near, standard[i]) >= enough
            word = word_by_contrast(contrasts[i], clear, share, empty)
            # Real images say what is no fake, and no more; a detector that does not separate has no evidence; and where
            # the evidence is spread no place is the right one.
            doubtful = checked.target[i] == "real" or not (evidence and evidence.separates) or near < ONE_PLACE
            word = WEAK if word == SUPPORTED and doubtful else word
        else:
            word = word_by_drop(share or 0.0, votes[i], empty)
        found.append(
            MapCheck(
                word=word,
                margin=margin,
                fall=drop,
                random=random,
                mass=mass / abs(margin) if margin else None,
                votes=votes[i],
                others=others[i],
                contrast=None if contrasts is None else contrasts[i],
                concentration=nearby[i],
                standard=standard[i],
            )
        )
    return found


def _agreement_of(
    detector: TriedDetector, checked: Checked, method: str, voters: Voters
) -> Callable[[Heat], Agreed | None]:
    """What asks the voters how far they agree with a map; nothing is asked where there is evidence."""
    if checked.evidence is not None:
        return lambda heat: None
    others = [one for one in voters.others if one.method != method]
    given = TrialImages(checked.images, checked.target, [None] * len(checked.images))
    heats, kept, _ = maps_of_all(detector, given, [*voters.blocks, *others])

    def agree(heat: Heat) -> Agreed:
        blocks, methods = (
            _agreement(heat, [heats[one] for one in some if one in heats], kept) for some in (voters.blocks, others)
        )
        return blocks, methods

    return agree


def _agreement(heat: Heat, voters: Sequence[Heat], kept: list[int]) -> list[float | None]:
    """Per image: the share of the voters whose hottest patch is the map's own or one next to it; None without voters.

    The voters' maps are of the images at the positions `kept`.
    """
    found: list[float | None] = [None] * len(heat.raw)
    if not voters or not kept:
        return found
    place, patch = _peak(heat.raw[kept])
    near = []
    for voter in voters:
        other, other_patch = _peak(voter.raw)
        reach = torch.maximum(patch, other_patch) * 1.01  # one patch of the coarser grid, but for rounding
        near.append(((place - other).abs() <= reach).all(dim=1) & ~voter.empty)
    for position, share in zip(kept, torch.stack(near).float().mean(dim=0).tolist(), strict=True):
        found[position] = share
    return found


def _peak(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (N, 2) of the hottest patch and size (2,) of a patch: rows and columns in shares of the image."""
    raw = on_trial_grid(raw)
    size = torch.tensor(raw.shape[1:], dtype=torch.float32)
    place = raw.flatten(1).argmax(dim=1)
    rows_columns = torch.stack([torch.div(place, raw.shape[2], rounding_mode="floor"), place % raw.shape[2]], dim=1)
    return (rows_columns + 0.5) / size, 1 / size
