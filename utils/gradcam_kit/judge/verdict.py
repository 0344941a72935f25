"""Choose the map whose hottest patches matter most to the detector, or report that none stands out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.typed import Count, builtins, fit, with_nan
from ..engine.recipe import Recipe
from .trial import BLUR, CALM, MEAN_COLOUR, MIRRORED, OTHER_REAL, PAIRED_REAL, SHARE, Trial

CHOSEN, UNDECIDED, UNSUPPORTED, NAMED, UNTRIED = "chosen", "undecided", "unsupported", "named", "untried"
ALIKE = 0.95  # candidates with this share of the best drop count as equal; the first on the list wins
FAR_BELOW = 0.5  # a named map below this share of the best drop is reported; so small a second drop fails a winner
FEWEST_IMAGES = 4  # needed for a choice
RESAMPLES, LEVEL = 2_000, 0.95
FEWEST_EARLY = 8  # images and videos needed before a trial may end early
EARLY_LEVEL = 0.995  # level of the intervals that end a trial, or drop candidates, early
CLOSE = 0.85  # the trial ends once the leader's drop is above this share of every other one, by an interval at LEVEL
SHOWN_ROWS = 5
OF_FILL = {
    PAIRED_REAL: "those of the paired real image", OTHER_REAL: "those of another real image",
    MIRRORED: "those of the mirrored image", MEAN_COLOUR: "the mean colour", BLUR: "blurred ones",
}  # fmt: skip

Unmade = Mapping[Recipe, str]


class Interval(NamedTuple):
    """A mean over images with its interval by a bootstrap over videos; with one video the ends are NaN."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One candidate's results: its drop with the first fill, the drop of random patches, and the difference.

    `share`: the difference as a share of the best candidate's; `second`: the same share with the last fill.
    """

    candidate: Recipe
    fall: float
    random: float
    beyond: Interval
    share: float
    second: float
    named: bool


@dataclass(frozen=True)
class Choice:
    """The map to draw, and why.

    `state`: CHOSEN; UNDECIDED if fills disagree or there are too few images; UNSUPPORTED if no candidate's interval is
    above 0; NAMED if the user named the recipes completely; UNTRIED. `used`: the map to draw, for several named layers
    the first. `moved`: fill → share of the margin by which random patches move it; `fills`: the fills used. `unmade`:
    candidate → why it has no map. `margin`: the mean absolute margin. `bank`: dataset and index of each real frame
    that a run compares patches with. `separates`: whether the detector separates real from fake; if not, no map is
    supported.
    """

    state: str
    used: Recipe
    reason: str = ""
    rows: tuple[TrialRow, ...] = ()  # best first
    moved: Mapping[str, float] = field(default_factory=dict)
    fills: tuple[str, ...] = ()
    images: Count = 0
    videos: Count = 0
    margin: float = 0.0
    unmade: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # on the images
    bank: tuple[tuple[str, int], ...] = ()
    separates: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the choice for files; NaN becomes null."""
        rows = [{**builtins(row), "candidate": row.candidate.facts()} for row in self.rows]
        return {**builtins(self), "used": self.used.facts(), "rows": rows}

    @classmethod
    def from_json(cls, values: Any) -> Choice:
        """Read the result of `to_json`. Raises ValueError for anything else."""
        try:
            rows = [
                {**row, "candidate": Recipe.of(row["candidate"]), "beyond": Interval(**with_nan(row["beyond"]))}
                for row in values["rows"]
            ]
            used, moved = Recipe.of(values["used"]), with_nan(values["moved"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a choice: {error!r}") from error
        return fit({**values, "used": used, "rows": rows, "moved": moved}, cls)

    @property
    def best(self) -> TrialRow | None:
        """The row with the largest drop beyond random; None if nothing was tried."""
        return self.rows[0] if self.rows else None

    def best_at(self, layer: str) -> Recipe:
        """Return a named layer's recipe: its best candidate if it beats random patches, else `used` at this layer."""
        better = (row.candidate for row in self.rows if row.candidate.layers == (layer,) and row.beyond.low > 0)
        return next(better, self.used.at(layer)) if self.state == CHOSEN else self.used.at(layer)

    def row(self, candidate: Recipe) -> TrialRow | None:
        """Return one candidate's row, or None."""
        return next((row for row in self.rows if row.candidate == candidate), None)


def choose(
    trial: Trial, candidates: Sequence[Recipe], named: Sequence[Recipe], videos: Sequence[Hashable], unmade: Unmade
) -> Choice:
    """Choose the candidate with the largest drop beyond random patches; `candidates` are in order of preference.

    If the user has `named` recipes completely, nothing is chosen, and the candidates only serve to compare with them.
    `videos`: each image's video. `unmade`: candidates without maps, and why.
    """
    rows = _rows(trial, named, videos)
    made = partial(
        Choice,
        rows=tuple(rows),
        moved=trial.moved,
        fills=tuple(trial.drops),
        images=trial.images,
        videos=len(set(videos)),
        margin=float(trial.margins.abs().mean()),
        unmade={str(one): reason for one, reason in unmade.items()},
    )
    if named:
        return made(NAMED, named[0])
    first = next(one for one in candidates if one not in unmade)
    if trial.images < FEWEST_IMAGES or len(set(videos)) < 2:
        seen = f"images: {trial.images}, videos: {len(set(videos))}"
        return made(UNDECIDED, first, f"{seen}; a choice needs at least {FEWEST_IMAGES} images from two videos")
    if not any(row.beyond.low > 0 for row in rows):
        return made(UNSUPPORTED, first, "no map's hottest patches matter more to the detector than random ones")
    alike = [row for row in rows if row.share >= ALIKE * rows[0].share and row.beyond.low > 0] or rows[:1]
    winner = min(alike, key=lambda row: candidates.index(row.candidate))
    problem = _disagreement(trial, winner)
    return made(UNDECIDED if problem else CHOSEN, winner.candidate, problem)


def _disagreement(trial: Trial, winner: TrialRow) -> str:
    """Return why the winner is not reliable, or "". Real tokens and a paired real need no second fill."""
    if PAIRED_REAL in trial.drops:
        return ""
    margin = float(trial.margins.abs().mean())
    # The largest possible drop: the margin, or the best drop if images are near the decision.
    worth = {
        fill: max(margin, *(float(values.nanmean()) for values in drops.values()))
        for fill, drops in trial.drops.items()
    }
    restless = [fill for fill in worth if trial.moved[fill] * margin > CALM * worth[fill]]
    if restless:
        return f"random patches filled by {' or '.join(restless)} change the score too"
    if winner.second < FAR_BELOW:
        return f"the fills {' and '.join(trial.drops)} do not agree on one map"
    return ""


def contenders(
    trial: Trial, candidates: Sequence[Recipe], named: Sequence[Recipe], videos: Sequence[Hashable]
) -> list[Recipe]:
    """Return the candidates that more images may still decide about; none if the choice is settled.

    The tests use paired intervals over videos at EARLY_LEVEL. A candidate drops out if its drop beyond random is below
    ALIKE of the best one's. One after the best on the list drops out unless it may still be clearly better. A named map
    is settled if it is clearly above or below FAR_BELOW of the best. If no map is named, the trial ends once the leader
    is above CLOSE of all remaining maps, since more images would gain little. All candidates stay until the best is
    above random at that level, on at least FEWEST_EARLY videos.
    """
    fill = next(iter(trial.drops))
    beyond = {one: drops - trial.random[fill][one] for one, drops in trial.drops[fill].items() if one in candidates}
    best = max(beyond, key=lambda one: float(beyond[one].mean()))

    def ends(values: Tensor, level: float = EARLY_LEVEL) -> Interval:
        return interval(values, videos, level=level)

    if len(set(videos)) < FEWEST_EARLY or not ends(beyond[best]).low > 0:
        return list(beyond)
    place = list(beyond).index(best)

    def may_win(one: Recipe, behind: bool) -> bool:
        gap = beyond[best] - ALIKE * beyond[one] if behind else ALIKE * beyond[best] - beyond[one]
        return not ends(gap).low > 0

    open_ones = [one for i, one in enumerate(beyond) if i != place and may_win(one, i > place)]
    if named:
        gaps = [ends(beyond[one] - FAR_BELOW * beyond[best]) for one in named if one in beyond]
        settled = all(gap.low > 0 or gap.high < 0 for gap in gaps)
    else:
        least = ALIKE * float(beyond[best].mean())
        drawn = next(one for one, of in beyond.items() if float(of.mean()) >= least and ends(of, LEVEL).low > 0)
        others = [beyond[one] for one in (best, *open_ones) if one != drawn]
        settled = all(ends(beyond[drawn] - CLOSE * of, LEVEL).low > 0 for of in others)
    return [] if settled else [one for one in beyond if one in (best, *open_ones, *named)]


def _rows(trial: Trial, named: Sequence[Recipe], videos: Sequence[Hashable]) -> list[TrialRow]:
    """Return a row per candidate, the largest share first."""
    beyond = [{one: drops[one] - trial.random[fill][one] for one in drops} for fill, drops in trial.drops.items()]
    shares = [_shares(by) for by in beyond]
    first = next(iter(trial.drops))
    rows = [
        TrialRow(
            candidate=one,
            fall=float(drops.nanmean()),
            random=float(trial.random[first][one].nanmean()),
            beyond=interval(beyond[0][one], videos),
            share=shares[0][one],
            second=shares[-1][one],
            named=one in named,
        )
        for one, drops in trial.drops[first].items()
    ]
    return sorted(rows, key=lambda row: -row.share)


def _shares(beyond: Mapping[Recipe, Tensor]) -> dict[Recipe, float]:
    """Return each candidate's mean as a share of the largest; 0 if none is positive.

    A candidate that was dropped early is compared on its own images, and does not count as equal any more.
    """
    whole = {one: float(values.mean()) for one, values in beyond.items() if bool(values.isfinite().all())}
    best = max(whole, key=lambda one: whole[one])
    shares = {}
    for one, values in beyond.items():
        there = values.isfinite()
        of_best = float(beyond[best][there].mean())
        share = float(values[there].mean()) / of_best if of_best > 0 and whole[best] > 0 else 0.0
        shares[one] = share if one in whole else min(share, ALIKE - 0.01)
    return shares


def interval(values: Tensor, videos: Sequence[Hashable], seed: int = 0, level: float = LEVEL) -> Interval:
    """Return the mean of (N,) with its percentile interval by a cluster bootstrap over videos; NaN is ignored."""
    there = values.isfinite().tolist()
    values, videos = values[there], [video for video, one in zip(videos, there, strict=True) if one]
    names = {name: i for i, name in enumerate(dict.fromkeys(videos))}
    if len(names) < 2:
        return Interval(float(values.mean()), math.nan, math.nan)
    video = torch.tensor([names[name] for name in videos])
    sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, video, values.double())
    counts = torch.bincount(video, minlength=len(names)).double()
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(values.mean()), low, high)


def choice_lines(choice: Choice) -> list[str]:
    """Return the lines for the terminal: the chosen map, the reason, and the best rows of the table."""
    lines = [f"map: {headline(choice)}"]
    shown = [row for i, row in enumerate(choice.rows) if i < SHOWN_ROWS or row.named or row.candidate == choice.used]
    for row in shown:
        spread = "" if math.isnan(row.beyond.low) else f" [{row.beyond.low:.2f}, {row.beyond.high:.2f}]"
        lines.append(
            f"  {row.candidate!s:<52} drop {row.fall:6.2f}, random patches {row.random:6.2f}, difference"
            f" {row.beyond.mean:6.2f}{spread}"
        )
    if choice.state == CHOSEN and choice.best and choice.best.candidate != choice.used:
        lines.append(
            f"  candidates within {1 - ALIKE:.0%} of the largest drop count as equal; the preferred one is drawn"
        )
    return [*lines, *(f"  {note}" for note in choice.notes)]


def headline(choice: Choice) -> str:
    """Return one sentence: the map, and how sure the choice is."""
    reason = f" ({choice.reason})" if choice.reason else ""
    if choice.state == UNTRIED:
        return f"{choice.used}, not tried{reason}"
    meaning = {
        NAMED: "as named, compared with others",
        CHOSEN: "chosen by test",
        UNDECIDED: "undecided",
        UNSUPPORTED: "unsupported: no test shows that its maps are right",
    }[choice.state]
    fills = " and, to confirm, by ".join(OF_FILL.get(fill, fill) for fill in choice.fills)
    return (
        f"{choice.used}, {meaning}{reason}: drop of the margin (mean {choice.margin:.2f}) when the hottest {SHARE:.0%}"
        f" of the patches are replaced by {fills}, on {choice.images} images of {choice.videos} videos"
    )


def judgements(choice: Choice) -> list[str]:
    """Return a sentence for each named map that is not better than random patches, or far below the best."""
    best = choice.best
    if best is None or choice.images < FEWEST_IMAGES or not best.beyond.mean > 0:
        return []
    lines = []
    for row in choice.rows:
        lost = not row.beyond.mean > 0 or (row.beyond.low <= 0 < best.beyond.low)
        if row.named and (lost or row.share < FAR_BELOW):
            lines.append(
                f"{row.candidate} shows {'nothing' if lost else 'little'} of the detector's evidence: the margin drops"
                f" by {row.fall:.2f} when its hottest patches are replaced, by {row.random:.2f} for random patches, by"
                f" {best.fall:.2f} for those of {best.candidate}; use --gradcam_method auto --gradcam_layers auto"
            )
    return lines
