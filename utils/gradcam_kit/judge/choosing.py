"""The choice of a map from images, for a run, `calibrate_gradcam` and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..base.errors import InputError
from ..engine.layers import LayerError
from ..engine.maps import NonFiniteMapError
from ..engine.recipe import Recipe
from .candidates import candidate_maps
from .transplant import Margins
from .trial import (
    PAIRED_REAL,
    REAL_TOKENS,
    CandidateMaps,
    Fills,
    Scorer,
    TokenFill,
    Trial,
    fills_of,
    joined,
    try_candidates,
)
from .verdict import FEWEST_EARLY, UNTRIED, Choice, choose, contenders

T = TypeVar("T")
SPREAD = 0.05  # minimum standard deviation of the margins in logits; an untrained detector's are nearly equal
FAIR_AUC = 0.7  # random heads on the features of pre-trained CLIP towers reach .6 in 11 to 20 %, this in 0.5 to 5 %
InParts = Callable[[Callable[[slice], T], int], list[T]]  # (work on a slice, number of images) → results in order


def in_batches(size: int) -> InParts[Any]:
    """Return an InParts that uses batches of `size` images."""

    def run(work: Callable[[slice], T], count: int) -> list[T]:
        return [work(slice(start, min(start + size, count))) for start in range(0, count, size)]

    return run


class TriedDetector(NamedTuple):
    """The functions of a detector that a trial needs."""

    capture: Callable[..., Any]  # (images, target, videos, recipes) → a Capture, from one pass
    margins: Margins  # for any number of images
    in_parts: InParts[Any]  # splits the work into batches that fit into memory
    # (images, their videos, what a pass saw of them) → a fill that exchanges patches for real tokens; None: no bank
    exchange: Callable[..., TokenFill] | None = None


class TrialImages(NamedTuple):
    """N normalised images (N, 3, H, W), their targets (fake, real or margin) and their videos.

    `reals` (M, 3, H, W): images that the detector calls real, from `real_videos`. `paired` (N, 3, H, W): the real image
    that each fake was made from; `has_pair` (N,) bool: whether it is known.
    """

    images: Tensor
    target: Sequence[str]
    videos: Sequence[Hashable]
    reals: Tensor | None = None
    paired: Tensor | None = None
    has_pair: Tensor | None = None
    real_videos: Sequence[Hashable] = ()

    def only(self, kept: Tensor) -> TrialImages:
        """Select the images at the positions `kept`."""
        target, videos = ([of[i] for i in kept.tolist()] for of in (self.target, self.videos))
        paired, has_pair = (None if of is None else of[kept] for of in (self.paired, self.has_pair))
        return TrialImages(self.images[kept], target, videos, self.reals, paired, has_pair, self.real_videos)


def trial_images(
    margins: Margins, batches: Iterable[Mapping[str, Any]], count: int, target: str = "fake"
) -> TrialImages:
    """Select the first `count` images of `batches` that the detector calls fake, and as many that it calls real.

    If it calls none fake, the real ones are used, with target "real". A batch holds `image` (B, 3, H, W), and may hold
    `video` and `paired_real` as in `GradCAMMixin.calibrate_gradcam`. Raises InputError without any image.
    """
    fakes: list[tuple[Tensor, Hashable, Tensor | None]] = []
    reals: list[tuple[Tensor, Hashable, Tensor | None]] = []
    number = 0
    for batch in batches:
        images, videos, paired = batch["image"], batch.get("video"), batch.get("paired_real")
        for i, margin in enumerate(margins(images).tolist()):
            where = fakes if margin > 0 else reals
            if len(where) < count:
                video = videos[i] if videos is not None else ("image", number)
                where.append((images[i], video, None if paired is None else paired[i]))
            number += 1
        if len(fakes) == len(reals) == count:
            break
    used = fakes or reals
    if not used:
        raise InputError("no image for choosing the map: give at least one batch")
    images, videos, paired = zip(*used, strict=True)
    pairs = [pair for pair in paired if pair is not None]
    known = len(pairs) == len(used)
    return TrialImages(
        torch.stack(images),
        [target if fakes else "real"] * len(used),
        videos,
        torch.stack([image for image, _, _ in reals]) if fakes and reals else None,
        torch.stack(pairs) if known else None,
        torch.ones(len(used), dtype=torch.bool) if known else None,
        [video for _, video, _ in reals] if fakes else (),
    )


def choose_map(
    detector: TriedDetector, given: TrialImages, candidates: Sequence[Recipe], named: Sequence[Recipe] = ()
) -> Choice:
    """Try `named` and `candidates` on the images, and choose by `judge.verdict.choose`.

    Images with a margin or map that is not finite are skipped; `Choice.unmade` lists candidates without a map. If at
    least half of the images have a pair, pairs are the fill, and images without one are skipped.
    """
    if given.has_pair is not None and given.has_pair.float().mean() >= 0.5:
        given = given.only(given.has_pair.nonzero().flatten())
    found = _tried(detector, given, list(dict.fromkeys([*named, *candidates])), named)
    if found.trial is None:
        reasons = {str(one): reason for one, reason in found.unmade.items()}
        return Choice(UNTRIED, (named or candidates)[0], "no image or no map could be tried", unmade=reasons)
    made = [one for one in named if one in next(iter(found.trial.drops.values()))]
    return choose(found.trial, candidates, made, found.videos, found.unmade)


class _Tried(NamedTuple):
    """A trial (None if nothing could be tried), its images' videos, and why some candidates have no map."""

    trial: Trial | None
    videos: list[Hashable]
    unmade: dict[Recipe, str]


def _tried(detector: TriedDetector, given: TrialImages, candidates: list[Recipe], named: Sequence[Recipe]) -> _Tried:
    """Try the candidates. If only one fill applies, try in turns of more images until the choice is settled."""
    only = None
    if given.has_pair is not None and bool(given.has_pair.all()):
        only = PAIRED_REAL
    elif detector.exchange is not None:
        only = REAL_TOKENS
    trials: list[Trial] = []
    videos: list[Hashable] = []
    unmade: dict[Recipe, str] = {}
    turns = _turns(len(given.images)) if only else [torch.arange(len(given.images))]
    for number, turn in enumerate(turns):
        margins = detector.margins(given.images[turn]).float().cpu()
        finite = torch.isfinite(margins)
        some, before = given.only(turn[finite]), margins[finite]
        maps, kept, reasons = maps_of_all(detector, some, candidates)
        unmade |= reasons
        if not maps or not kept:
            continue
        some, before = some.only(torch.tensor(kept)), before[kept] * directions([some.target[i] for i in kept])
        scorer = Scorer(detector.margins, directions(some.target))
        trials.append(try_candidates(some.images, maps, _fills(detector, some, only), scorer, only, before, number))
        videos += some.videos
        candidates = [one for one in candidates if one not in unmade]
        if number + 1 < len(turns):
            candidates = contenders(joined(trials), candidates, named, videos)
            if not candidates:
                break
    return _Tried(joined(trials) if trials else None, videos, unmade)


def _turns(count: int) -> list[Tensor]:
    """Split positions of `count` images into turns of 8, 8 and the rest, each spread over all; few make one turn."""
    left, turns = torch.arange(count), list[Tensor]()
    while len(left) >= 2 * FEWEST_EARLY and len(turns) < 2:
        turns.append(left[:: len(left) // FEWEST_EARLY][:FEWEST_EARLY])
        left = left[~torch.isin(left, turns[-1])]
    return [*turns, left]


def _fills(detector: TriedDetector, given: TrialImages, only: str | None) -> Fills:
    if only == REAL_TOKENS and detector.exchange is not None:
        return {REAL_TOKENS: detector.exchange(given.images, given.videos)}
    if only == PAIRED_REAL and given.paired is not None:
        return {PAIRED_REAL: given.paired}
    return fills_of(given.images, given.reals)


def separates(margins: Tensor, labels: Sequence[int] | None) -> bool:
    """Tell whether a detector separates real from fake, by its margins (N,).

    With `labels` (0 real, 1 fake) of both classes, the AUC must reach FAIR_AUC, and exceed chance by two standard
    deviations (Mann and Whitney 1947: mean 1/2, variance (m + n + 1) / 12 m n). Otherwise the margins must vary.
    """
    if labels is None or len(set(labels)) < 2:
        return float(margins.double().std()) > SPREAD if len(margins) > 1 else True
    is_fake = torch.tensor(labels) != 0
    fakes, reals = margins[is_fake].double(), margins[~is_fake].double()
    difference = fakes.unsqueeze(1) - reals
    auc = float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
    m, n = len(fakes), len(reals)
    return auc >= FAIR_AUC and auc > 0.5 + 2 * ((m + n + 1) / (12 * m * n)) ** 0.5


def directions(target: Sequence[str]) -> Tensor:
    """Return the sign (N,) of each target: -1 for real, else 1."""
    return torch.tensor([-1.0 if name == "real" else 1.0 for name in target])


def maps_of_all(
    detector: TriedDetector, given: TrialImages, candidates: Sequence[Recipe]
) -> tuple[dict[Recipe, CandidateMaps], list[int], dict[Recipe, str]]:
    """Return the candidates' maps, the positions of images with finite maps, and why some candidates have no map."""
    unmade: dict[Recipe, str] = {}
    kept: list[int] = []

    def work(part: slice) -> dict[Recipe, CandidateMaps]:
        positions = list(range(*part.indices(len(given.images))))
        while positions:
            some = given.only(torch.tensor(positions))
            wanted = [one for one in candidates if one not in unmade]
            try:
                found = _made(partial(detector.capture, some.images, some.target, some.videos), wanted, unmade)
            except NonFiniteMapError as error:
                positions = [position for i, position in enumerate(positions) if i not in error.samples]
            else:
                kept.extend(positions)
                return found
        return {}

    parts = [found for found in detector.in_parts(work, len(given.images)) if found]
    made = [one for one in candidates if one not in unmade]
    if not parts:
        return {}, [], unmade
    heats = {
        one: CandidateMaps(
            torch.cat([found[one].raw for found in parts]), torch.cat([found[one].empty for found in parts])
        )
        for one in made
    }
    return heats, kept, unmade


def _made(
    capture: Callable[..., Any], wanted: Sequence[Recipe], unmade: dict[Recipe, str]
) -> dict[Recipe, CandidateMaps]:
    """Return the maps that can be made, and add the reasons for the others to `unmade`."""
    try:
        maps = candidate_maps(capture, wanted)
    except LayerError:
        maps = {}
        for one in wanted:
            try:
                maps |= candidate_maps(capture, [one])
            except LayerError as error:
                unmade[one] = str(error)
    return {one: CandidateMaps(layer.raw.float().cpu(), layer.empty.cpu()) for one, layer in maps.items()}
