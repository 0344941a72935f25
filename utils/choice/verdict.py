"""From a trial to a choice: the map whose hottest patches the detector misses most, or that none can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Hashable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from utils.choice.candidates import Candidate
from utils.choice.fills import PAIRED_REAL
from utils.choice.trial import SHARE, Trial

CHOSEN, UNDECIDED, UNSUPPORTED, NAMED, UNTRIED = "chosen", "undecided", "unsupported", "named", "untried"
CALM = 0.1  # of the margin or the best fall: random patches move the margin less, or the fill itself speaks for a class
ALIKE = 0.95  # of the best fall: such candidates count as equal, and the first on the list is taken
AGREES = 0.9  # of each fill's best fall: what the winner must reach under both
FAR_BELOW = 0.5  # of the best fall: a named map below it is said to be
FEWEST_IMAGES = 4  # fewer choose nothing
RESAMPLES, LEVEL = 2_000, 0.95


class Interval(NamedTuple):
    """A mean over images, with its interval by a bootstrap over videos; the ends are NaN where one video is all."""

    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """One candidate: falls of the margin under the calmest fill, and beyond random patches under all fills used.

    `share` is of the best candidate's fall beyond random, the worst of the fills used. `named` by the user.
    """

    candidate: Candidate
    fall: float
    random: float
    beyond: Interval
    share: float
    named: bool


@dataclass(frozen=True)
class Choice:
    """Which map is drawn, and why.

    `state`: CHOSEN; UNDECIDED, where fills disagree or there are too few images; UNSUPPORTED, where no candidate's
    interval lies above 0; NAMED, where nothing was left open; UNTRIED. `used` is what is drawn, of several named layers
    the first. `moved`: fill → share of the margin by which random patches move it; `fills` are those that were used.
    `unmade`: candidate → why it has no map here. `margin`: mean of its size over the images.
    """

    state: str
    used: Candidate
    reason: str = ""
    rows: tuple[Row, ...] = ()  # best first
    moved: Mapping[str, float] = field(default_factory=dict)
    fills: tuple[str, ...] = ()
    images: int = 0
    videos: int = 0
    margin: float = 0.0
    unmade: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # on the images

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "used": self.used._asdict(),
            "reason": self.reason,
            "rows": [
                {
                    **row._asdict(),
                    "candidate": row.candidate._asdict(),
                    "beyond": {end: _or_none(value) for end, value in row.beyond._asdict().items()},
                }
                for row in self.rows
            ],
            "moved": {fill: _or_none(value) for fill, value in self.moved.items()},
            "fills": list(self.fills),
            "images": self.images,
            "videos": self.videos,
            "margin": self.margin,
            "unmade": dict(self.unmade),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: Any) -> Choice:
        """The choice that `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        rows = [
            Row(
                Candidate(**row["candidate"]),
                float(row["fall"]),
                float(row["random"]),
                Interval(*(_number(row["beyond"][key]) for key in Interval._fields)),
                float(row["share"]),
                bool(row["named"]),
            )
            for row in values["rows"]
        ]
        return cls(
            state=str(values["state"]),
            used=Candidate(**values["used"]),
            reason=str(values["reason"]),
            rows=tuple(rows),
            moved={str(name): _number(value) for name, value in values["moved"].items()},
            fills=tuple(map(str, values["fills"])),
            images=int(values["images"]),
            videos=int(values["videos"]),
            margin=float(values["margin"]),
            unmade={str(name): str(reason) for name, reason in values["unmade"].items()},
            notes=tuple(map(str, values["notes"])),
        )

    @property
    def best(self) -> Row | None:
        """The row of the largest fall beyond random, None where nothing was tried."""
        return self.rows[0] if self.rows else None

    def row(self, candidate: Candidate) -> Row | None:
        """The row of one candidate."""
        return next((row for row in self.rows if row.candidate == candidate), None)


def _or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ----------------------------------------------------------------------------------------------------------- the choice


def choose(
    trial: Trial,
    candidates: Sequence[Candidate],
    named: Sequence[Candidate],
    videos: Sequence[Hashable],
    unmade: Mapping[Candidate, str],
) -> Choice:
    """The candidate with the largest fall beyond random patches.

    Args:
        candidates: what may be chosen, in order of preference; the first that has a map is fallen back on.
        named: what the user has named wholly; then nothing is chosen, and the others are what it is measured by.
        videos: of each image.
        unmade: candidates without maps here, and why.
    """
    rows = _rows(trial, named, videos)
    facts: dict[str, Any] = {
        "rows": tuple(rows),
        "moved": trial.moved,
        "fills": tuple(trial.falls),
        "images": trial.images,
        "videos": len(set(videos)),
        "margin": float(trial.margins.abs().mean()),
        "unmade": {str(one): reason for one, reason in unmade.items()},
    }
    if named:
        return Choice(NAMED, named[0], **facts)
    first = next(one for one in candidates if one not in unmade)
    if trial.images < FEWEST_IMAGES or len(set(videos)) < 2:
        seen = f"images: {trial.images}, videos: {len(set(videos))}"
        return Choice(UNDECIDED, first, f"{seen}; it takes at least {FEWEST_IMAGES}, of two videos, to choose", **facts)
    if not any(row.beyond.low > 0 for row in rows):
        return Choice(
            UNSUPPORTED, first, "no map's hottest patches matter more to the detector than random ones", **facts
        )
    winner = _winner(rows, candidates)
    problem = _disagreement(trial, winner)
    return Choice(UNDECIDED if problem else CHOSEN, winner.candidate, problem, **facts)


def _winner(rows: Sequence[Row], candidates: Sequence[Candidate]) -> Row:
    """Of the rows that are ALIKE the best, the one that comes first among the candidates."""
    best = max(row.share for row in rows)
    alike = [row for row in rows if row.share >= ALIKE * best and row.beyond.low > 0] or list(rows[:1])
    return min(alike, key=lambda row: candidates.index(row.candidate))


def _disagreement(trial: Trial, winner: Row) -> str:
    """Why the winner cannot be relied on; empty where it can. A paired real needs no second fill."""
    if PAIRED_REAL in trial.falls:
        return ""
    margin = float(trial.margins.abs().mean())
    restless = [
        fill for fill, falls in trial.falls.items() if trial.moved[fill] * margin > CALM * _worth(falls, margin)
    ]
    if restless:
        return f"the detector minds random patches, too, where they are filled by {' or '.join(restless)}"
    if winner.share < AGREES:
        return f"the fills {' and '.join(trial.falls)} do not agree on one map"
    return ""


def _worth(falls: Mapping[Candidate, Tensor], margin: float) -> float:
    """What there is to be lost: the margin or, where images lie near the decision, the best fall."""
    return max(margin, *(float(values.mean()) for values in falls.values()))


def _rows(trial: Trial, named: Sequence[Candidate], videos: Sequence[Hashable]) -> list[Row]:
    """A row per candidate, the largest share first."""
    fills = list(trial.falls)
    candidates = list(trial.falls[fills[0]])
    beyond = {fill: {one: trial.falls[fill][one] - trial.random[fill][one] for one in candidates} for fill in fills}
    means = {fill: {one: float(values.mean()) for one, values in by.items()} for fill, by in beyond.items()}
    best = {fill: max(by.values()) for fill, by in means.items()}
    rows = []
    for one in candidates:
        shares = [means[fill][one] / best[fill] if best[fill] > 0 else 0.0 for fill in fills]
        together = torch.stack([beyond[fill][one] for fill in fills]).mean(dim=0)
        falls, random = trial.falls[fills[0]][one], trial.random[fills[0]][one]
        rows.append(
            Row(one, float(falls.mean()), float(random.mean()), interval(together, videos), min(shares), one in named)
        )
    return sorted(rows, key=lambda row: -row.share)


def interval(values: Tensor, videos: Sequence[Hashable], seed: int = 0) -> Interval:
    """Mean of (N,) with its 95 % percentile interval, by a cluster bootstrap over videos."""
    names = {name: i for i, name in enumerate(dict.fromkeys(videos))}
    if len(names) < 2:
        return Interval(float(values.mean()), math.nan, math.nan)
    video = torch.tensor([names[name] for name in videos])
    sums = torch.zeros(len(names), dtype=torch.float64).index_add(0, video, values.double())
    counts = torch.bincount(video, minlength=len(names)).double()
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return Interval(float(values.mean()), low, high)


# ------------------------------------------------------------------------------------------------------------ in words

SHOWN_ROWS = 5


def printed(choice: Choice) -> list[str]:
    """The choice in a few lines: what is drawn and why, and the best rows of the table."""
    lines = [f"map: {headline(choice)}"]
    shown = [row for i, row in enumerate(choice.rows) if i < SHOWN_ROWS or row.named or row.candidate == choice.used]
    for row in shown:
        spread = "" if math.isnan(row.beyond.low) else f" [{row.beyond.low:.2f}, {row.beyond.high:.2f}]"
        lines.append(
            f"  {row.candidate!s:<52} fall {row.fall:6.2f}, random {row.random:6.2f},"
            f" beyond random {row.beyond.mean:6.2f}{spread}"
        )
    return [*lines, *(f"  {note}" for note in choice.notes)]


def headline(choice: Choice) -> str:
    """One sentence: which map, and how sure that is."""
    if choice.state == NAMED:
        return f"{choice.used}, as named, beside others: {_basis(choice)}"
    reason = f" ({choice.reason})" if choice.reason else ""
    if choice.state == UNTRIED:
        return f"{choice.used}, not tried{reason}"
    meaning = {
        CHOSEN: "chosen by cause",
        UNDECIDED: "undecided",
        UNSUPPORTED: "unsupported: its maps are drawn, but nothing shows that they mean anything",
    }
    return f"{choice.used}, {meaning[choice.state]}{reason}: {_basis(choice)}"


def _basis(choice: Choice) -> str:
    fills = " and ".join(choice.fills)
    return (
        f"fall of the margin (mean {choice.margin:.2f}) with the hottest {SHARE:.0%} of the patches filled by {fills},"
        f" {choice.images} images of {choice.videos} videos"
    )


def judgements(choice: Choice) -> list[str]:
    """One sentence for each named map that random patches or the best candidate put to shame, with both figures."""
    best = choice.best
    if best is None or choice.images < FEWEST_IMAGES or not best.beyond.mean > 0:
        return []
    lines = []
    for row in choice.rows:
        lost = not row.beyond.mean > 0 or (row.beyond.low <= 0 < best.beyond.low)
        if row.named and (lost or row.share < FAR_BELOW):
            found = "nothing" if lost else "little"
            lines.append(
                f"{row.candidate}: with its hottest patches replaced the margin falls by {row.fall:.2f},"
                f" with random ones by {row.random:.2f}, with those of {best.candidate} by {best.fall:.2f}:"
                f" it shows {found} of what the detector reads;"
                " use --gradcam_method auto --gradcam_layers auto"
            )
    return lines
