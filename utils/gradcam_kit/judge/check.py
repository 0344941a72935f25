"""Can this map of this image be relied on? Figures by drop and by agreement, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.recipe import BALANCED, RESIDUAL, Recipe
from .choosing import TriedDetector, directions, maps_of_all
from .trial import FILLS, Heat, Scorer, grid_of, hottest, on_trial_grid, random_patches

SUPPORTED, WEAK, ARTEFACT = "supported", "weak", "artefact"
WORDS = (SUPPORTED, WEAK, ARTEFACT)
# Every threshold of the verdict: shares of the margin that the hottest patches take beyond random ones; of the votes.
CLEAR_DROP, SOME_DROP = 0.25, 0.05
CLEAR_VOTES, SOME_VOTES = 0.5, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCheck:
    """What speaks for one map of one image.

    `word`: the verdict. `margin`: towards the class that is explained, as the detector gives it. `fall` and `random`:
    its drop once the map's hottest patches, and as many random ones, are replaced. `mass`: the raw map's sum as a share
    of the margin. `votes`: share of the tower's blocks whose balanced map is hottest at the same patch or one next to
    it. `others`: the same of other methods' maps. None where there are none, or the margin is 0.
    """

    word: str
    margin: float
    fall: float
    random: float
    mass: float | None
    votes: float | None
    others: float | None

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise ValueError(", ".join(WORDS))

    @property
    def verdict(self) -> str:
        """SUPPORTED, WEAK or ARTEFACT."""
        return self.word


def support(fall: float, random: float, margin: float, votes: float | None) -> float:
    """The number behind the verdict, 0 to 1: mean of the votes and, unless the margin is 0, of the drop beyond random.

    A drop of CLEAR_DROP counts as 1.
    """
    signs = [] if votes is None else [votes]
    if margin:
        signs.append(min(1.0, max(0.0, (fall - random) / abs(margin) / CLEAR_DROP)))
    return sum(signs) / len(signs) if signs else 0.0


def word_of(fall: float, random: float, margin: float, votes: float | None, empty: bool = False) -> str:
    """SUPPORTED, WEAK or ARTEFACT.

    Supported: replacing the hottest patches costs a clear share of the margin and some blocks agree, or it costs some
    of it and most blocks agree. Artefact: it costs nothing to speak of and hardly a block agrees; and an empty map. A
    tower without balanced maps has no votes: only the drop decides.
    """
    share = (fall - random) / abs(margin) if margin else 0.0
    clear, some = share >= CLEAR_DROP, share >= SOME_DROP
    if empty:
        return ARTEFACT
    if votes is None:
        return SUPPORTED if clear else WEAK if some else ARTEFACT
    if (clear and votes >= SOME_VOTES) or (some and votes >= CLEAR_VOTES):
        return SUPPORTED
    return WEAK if some or votes >= SOME_VOTES else ARTEFACT


def block_voters(blocks: Sequence[str]) -> list[Recipe]:
    """The balanced map of every block."""
    return [Recipe("hirescam", block, RESIDUAL, BALANCED) for block in blocks]


class Checked(NamedTuple):
    """N images whose maps are checked."""

    images: Tensor  # (N, 3, H, W), as the detector takes them
    target: Sequence[str]  # what each image's map explains: fake, real or margin
    margins: Tensor  # (N,): fake − real
    seeds: Sequence[int]  # of each image's random patches


class Voters(NamedTuple):
    """The maps whose agreement is asked for. Those that are not finite, or that the detector lacks, do not vote."""

    blocks: Sequence[Recipe]
    others: Sequence[Recipe]  # of these, those of another method than the map's vote


def check_maps(
    detector: TriedDetector, checked: Checked, maps: Mapping[str, Heat], method: str, fill: str, voters: Voters
) -> dict[str, list[MapCheck]]:
    """One check for each image of each of `maps`: by layer, of these images, by `method`. `fill`: one of FILLS."""
    images, direction = checked.images, directions(checked.target)
    towards = checked.margins.float().cpu() * direction
    scorer, filled = Scorer(detector.margins, direction), FILLS[fill](images)
    others = [one for one in voters.others if one.method != method]
    heats, kept, _ = maps_of_all(detector, images, checked.target, [*voters.blocks, *others])
    checks = {}
    random_drops: dict[tuple[int, int], list[float]] = {}  # by grid: layers of one grid share them
    for layer, heat in maps.items():
        patches = hottest(*heat)
        grid = grid_of(patches)
        drops = scorer.drop(towards, images, filled, patches).tolist()
        if grid not in random_drops:
            drawn = torch.cat([random_patches(1, grid, seed) for seed in checked.seeds])
            random_drops[grid] = scorer.drop(towards, images, filled, drawn).tolist()
        votes, agreed = (
            _agreement(heat, [heats[one] for one in some if one in heats], kept) for some in (voters.blocks, others)
        )
        rows = zip(towards.tolist(), drops, random_drops[grid], heat.raw.flatten(1).sum(dim=1).tolist(), strict=True)
        checks[layer] = [
            MapCheck(
                word=word_of(drop, random, margin, votes[i], bool(heat.empty[i])),
                margin=margin,
                fall=drop,
                random=random,
                mass=mass / abs(margin) if margin else None,
                votes=votes[i],
                others=agreed[i],
            )
            for i, (margin, drop, random, mass) in enumerate(rows)
        ]
    return checks


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
