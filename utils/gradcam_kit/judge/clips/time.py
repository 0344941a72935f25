"""Tests in time: whether a map's hottest frames matter, and whether a detector uses the order of frames.

A replaced frame becomes the same frame of the real video that the fake was made from, where that is known. Otherwise it
becomes the nearest kept one of its clip ("freeze"), so that the detector sees only frames of the clip. `ClipMargins`
takes clips (N, T, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..bootstrap import VideoBootstrap
from ..check import AGAINST, ARTEFACT, CLEAR_DROP, CONTRADICTED, SUPPORTED, WEAK, MapCheck

ClipMargins = Callable[[Tensor], Tensor]  # clips → (N,) float32, fake − real


class RealClips(NamedTuple):
    """The real clips that N clips were made from, (N, T, 3, H, W), normalised; `paired` (N,) bool: which are known."""

    clips: Tensor
    paired: Tensor


REPLACED = 8  # one in so many frames is replaced, rounded up
RANDOM_DRAWS = 2  # draws of as many random frames, for comparison
SHUFFLES = 2
NOTHING = 0.02  # a smaller change counts as none; a share of the difference between two videos' margins
READS_ORDER, SINGLE_FRAMES, UNCLEAR = "reads the order of frames", "reads single frames", "not clear"


def freeze(clips: Tensor, replaced: Tensor) -> Tensor:
    """Replace frames (N, T) bool of clips (N, T, ...) by the nearest kept one, of two the earlier.

    A clip without a kept frame stays unchanged.
    """
    return clips[torch.arange(len(clips), device=clips.device)[:, None], nearest_kept(replaced).to(clips.device)]


def nearest_kept(replaced: Tensor) -> Tensor:
    """Return for each entry of (N, T, ...) bool the nearest frame that keeps it: itself if it is kept, or none is."""
    frames = replaced.shape[1]
    times = torch.arange(frames, device=replaced.device)
    distance = (times[:, None] - times[None, :]).abs().float() + 1e-3 * (times[None, :] > times[:, None])
    absent = replaced.movedim(1, -1).unsqueeze(-2)  # (N, ..., 1, T)
    nearest = distance.expand(*absent.shape[:-2], frames, frames).masked_fill(absent, math.inf).argmin(dim=-1)
    moves = replaced & ~replaced.all(dim=1, keepdim=True)
    return torch.where(moves, nearest.movedim(-1, 1), times.view(-1, *[1] * (replaced.ndim - 2)))


def replace_frames(clips: Tensor, replaced: Tensor, reals: RealClips | None = None) -> Tensor:
    """Replace frames (N, T) bool of clips (N, T, ...) by those of the real clip, or freeze them if it is unknown."""
    frozen = freeze(clips, replaced)
    if reals is None:
        return frozen
    known = (replaced.to(clips.device) & reals.paired.to(clips.device)[:, None]).view(*replaced.shape, 1, 1, 1)
    return torch.where(known, reals.clips, frozen)


def hottest_frames(time: Tensor) -> Tensor:
    """Select the largest eighth of each clip's values (N, T), of equal ones the earlier: (N, T) bool."""
    count = -(-time.shape[1] // REPLACED)
    places = time.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(time, dtype=torch.bool).scatter_(1, places, True)


def random_frames(like: Tensor, seeds: Sequence[int], draw: int) -> Tensor:
    """Select as many random frames per clip as `like` (N, T) bool has, by the clip's seed."""
    found = torch.zeros_like(like)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(RANDOM_DRAWS * int(seed) + draw)
        found[i, torch.randperm(like.shape[1], generator=generator)[: int(like[i].sum())]] = True
    return found


def cost_of_frames(margins: ClipMargins, clips: Tensor, reals: RealClips | None = None) -> Tensor:
    """Measure how far the margin drops if a single frame is replaced: (N, T) float32. T forward passes per clip."""
    whole = margins(clips)
    fallen = []
    for frame in range(clips.shape[1]):
        replaced = torch.zeros(clips.shape[:2], dtype=torch.bool)
        replaced[:, frame] = True
        fallen.append(whole - margins(replace_frames(clips, replaced, reals)))
    return torch.stack(fallen, dim=1)


def check_frames(
    margins: ClipMargins,
    clips: Tensor,
    time: Tensor,
    empty: Tensor,
    targets: Sequence[str],
    seeds: Sequence[int],
    reals: RealClips | None = None,
) -> list[MapCheck]:
    """Check each clip: compare replacing its hottest frames with replacing as many random ones.

    Args:
        time: (N, T) on the CPU, each frame's share of the map.
        empty: (N,) bool.
        targets: each clip's target: "real", or any other for fake.
        seeds: per clip, for the random frames.
        reals: replace the frames of these clips; of the others, frames are frozen.
    """
    direction = torch.tensor([-1.0 if target == "real" else 1.0 for target in targets])
    whole = margins(clips).cpu() * direction
    hot = hottest_frames(time)
    fall = whole - margins(replace_frames(clips, hot, reals)).cpu() * direction
    draws = [random_frames(hot, seeds, draw) for draw in range(RANDOM_DRAWS)]
    falls = [whole - margins(replace_frames(clips, drawn, reals)).cpu() * direction for drawn in draws]
    random = torch.stack(falls).mean(dim=0)
    return [
        MapCheck(
            word=_word((fall[i] - random[i]).item() / max(abs(whole[i].item()), 1e-12), bool(empty[i])),
            margin=whole[i].item(),
            fall=fall[i].item(),
            random=random[i].item(),
        )
        for i in range(len(clips))
    ]


def _word(share: float, empty: bool) -> str:
    """Return the verdict by the drop beyond random as a share of the margin.

    A frame is replaced by another of the same clip, so nothing is lost if the evidence is in all frames. Then the map
    is weak as to time, but not an artefact.
    """
    if empty:
        return ARTEFACT
    if share <= AGAINST:
        return CONTRADICTED
    return SUPPORTED if share >= CLEAR_DROP else WEAK


class Change(NamedTuple):
    """The margin's move under a change of the clips, as a share of the difference between two videos; 95 % interval.

    A single video has no interval: `low` is 0 and `high` infinite.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1%}" + (f" ({self.low:.1%} to {self.high:.1%})" if math.isfinite(self.high) else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTest:
    """The result of the test whether a detector uses the order of frames.

    `order`: for shuffled or reversed clips, the larger of the two. `frozen`: for clips that repeat their middle frame.
    """

    order: Change
    frozen: Change
    clips: int
    videos: int

    @property
    def word(self) -> str:
        """READS_ORDER, SINGLE_FRAMES, or UNCLEAR if the interval allows both, or there is none."""
        return READS_ORDER if self.order.low > NOTHING else SINGLE_FRAMES if self.order.high <= NOTHING else UNCLEAR

    @property
    def freezing_costs_nothing(self) -> bool:
        """Whether one repeated frame gives the same margin as the clip, so that no frame matters more than another."""
        return self.frozen.high <= NOTHING

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        says = f"the detector {self.word}" if self.word != UNCLEAR else "not clear from so few clips"
        moves = f"shuffling or reversing moves the margin by {self.order}, freezing the middle frame by {self.frozen}"
        seen = f"of the difference between two videos ({self.clips} clips of {self.videos} videos)"
        return [f"order of frames: {says}: {moves} {seen}", *([FROZEN_SENTENCE] if self.freezing_costs_nothing else [])]


FROZEN_SENTENCE = "one repeated frame gives the same margin as the clip, so no frame stands out: time curves are grey"


def order_test(margins: ClipMargins, clips: Tensor, videos: Sequence[Hashable], seed: int = 0) -> OrderTest:
    """Measure how shuffling, reversing and freezing clips (N, T, 3, H, W) changes the margin. Five passes per clip.

    `videos`: each clip's video, for the bootstrap. The scale is the mean difference between two videos' margins; with
    one video, the mean margin.
    """
    generator, frames = torch.Generator().manual_seed(seed), clips.shape[1]
    whole = margins(clips).double().cpu()
    shuffled = []
    for _ in range(SHUFFLES):
        order = torch.randperm(frames, generator=generator)
        if frames > 1 and torch.equal(order, torch.arange(frames)):
            order = order.roll(1)
        shuffled.append((margins(clips[:, order]).double().cpu() - whole).abs())
    backwards = (margins(clips.flip(1)).double().cpu() - whole).abs()
    middle = clips[:, frames // 2 : frames // 2 + 1].expand(clips.shape)
    frozen = (margins(middle.contiguous()).double().cpu() - whole).abs()
    moved = torch.stack([torch.maximum(torch.stack(shuffled).mean(dim=0), backwards), frozen], dim=1)
    scale = _between_videos(whole.numpy(), videos)
    values = moved.numpy() / scale if scale > 0 else np.zeros(moved.shape)
    intervals = VideoBootstrap(videos, seed=seed, resamples=2000).intervals(values)
    order_change, frozen_change = (
        Change(one.mean, 0.0, math.inf) if math.isnan(one.low) else Change(one.mean, one.low, one.high)
        for one in intervals
    )
    return OrderTest(order=order_change, frozen=frozen_change, clips=len(clips), videos=len(set(videos)))


def _between_videos(margins: np.ndarray, videos: Sequence[Hashable]) -> float:
    differences = [
        abs(margins[i] - margins[j]) for i in range(len(margins)) for j in range(i) if videos[i] != videos[j]
    ]
    return float(np.mean(differences)) if differences else float(np.abs(margins).mean())
