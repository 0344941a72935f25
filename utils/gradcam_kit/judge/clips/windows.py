"""Which frames stand in a wrong order: what it costs the score to repair windows of neighbouring frames.

No single frame shows a wrong order, and gradients point at its edges or next to them. So whole windows are repaired: by
the frames of the real video that the fake was made from, or else by sorting the window's own frames so that similar
ones are neighbours.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from .time import ClipMargins, RealClips, replace_frames

LONGEST = 6  # frames of a window: its 720 orders are all compared


def cost_of_windows(margins: ClipMargins, clips: Tensor, reals: RealClips | None = None) -> Tensor:
    """Measure how much more the margin drops if a repaired window contains a frame than if not: (N, T) float32.

    Windows are all of up to LONGEST neighbouring frames; one pass per clip and window that the repair changes, for T
    frames at most 6 T − 15. `reals`: repair the windows of clips whose real clip is known; the others' are sorted.
    """
    count, frames = clips.shape[:2]
    whole, apart = margins(clips), _distances(clips)
    windows = [
        (start, start + size) for size in range(1, min(LONGEST, frames - 1) + 1) for start in range(frames - size + 1)
    ]
    drops = torch.zeros(count, len(windows), device=whole.device)
    inside = torch.zeros(len(windows), frames, device=whole.device)
    for i, (start, stop) in enumerate(windows):
        inside[i, start:stop] = 1
        repaired = _ordered(clips, sorted_window(apart, start, stop))
        if reals is not None:
            exchanged = replace_frames(clips, inside[i].bool().expand(count, -1), reals)
            known = reals.paired.to(clips.device).view(-1, *[1] * (clips.ndim - 1))
            repaired = torch.where(known, exchanged, repaired)
        changed = (repaired != clips).flatten(1).any(dim=1)
        if changed.any():
            drops[changed, i] = whole[changed] - margins(repaired[changed])
    within = drops @ inside / inside.sum(dim=0)
    return within - drops @ (1 - inside) / (1 - inside).sum(dim=0).clamp(min=1)


def sorted_window(apart: Tensor, start: int, stop: int) -> Tensor:
    """Return the order of frames (N, T) int64 in which the window is as smooth as possible, from distances (N, T, T).

    Smooth: the least sum of distances of neighbours, including the frames before and after the window; of equal orders
    the given one.
    """
    count, frames = apart.shape[:2]
    orders = torch.tensor(list(permutations(range(start, stop))), device=apart.device)
    steps = sum(
        (apart[:, a, b] for a, b in zip(orders.T, orders.T[1:], strict=False)),
        torch.zeros(count, len(orders)).to(apart),
    )
    if start > 0:
        steps = steps + apart[:, start - 1, orders[:, 0]]
    if stop < frames:
        steps = steps + apart[:, orders[:, -1], stop]
    found = torch.arange(frames, device=apart.device).repeat(count, 1)
    found[:, start:stop] = orders[steps.argmin(dim=1)]
    return found


def _distances(clips: Tensor) -> Tensor:
    """Return the distance of each two frames, (N, T, T)."""
    flat = clips.flatten(2).float()
    return torch.cdist(flat, flat)


def _ordered(clips: Tensor, order: Tensor) -> Tensor:
    return clips[torch.arange(len(clips), device=clips.device)[:, None], order]
