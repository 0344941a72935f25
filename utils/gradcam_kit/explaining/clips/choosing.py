"""Which map of a detector of clips is drawn: the one whose hottest cells, in time and space, matter most to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ...engine.backward import BALANCED, PLAIN, can_balance
from ...engine.layers import LayerError
from ...engine.maps import NonFiniteMapError
from ...engine.recipe import Recipe
from ...judge.clip_trial import try_clip_maps
from ...judge.time import ClipMargins
from ...judge.trial import Heat, Scorer
from ...judge.verdict import UNTRIED, Choice, choose
from ..one_pass import Asked
from .one_pass import explain_clips
from .subject import ClipSubject

CLIPS = "clips"  # in errors


def clip_candidates(subject: ClipSubject, clip: Tensor) -> list[Recipe]:
    """The maps worth trying, the one to fall back on first; `clip` (1, T, 3, H, W) shows what runs."""
    layer = subject.default_layer(clip)
    found = [Recipe(method, layer) for method in ("gradcam", "hirescam", "layercam")]
    blocks = subject.tower.blocks
    if blocks:  # tokens that later blocks have mixed are not where they came from
        earlier = dict.fromkeys((blocks[0], blocks[len(blocks) // 2], layer))
        balanced = can_balance(subject.tower)
        how = ("residual", BALANCED) if balanced else ("layer_norm1", PLAIN)
        found += [Recipe("hirescam", one, *how) for one in earlier if balanced or one != layer]
    return found


def choose_clip_map(
    subject: ClipSubject,
    margins: ClipMargins,
    clips: Tensor,
    target: str,
    videos: Sequence[Hashable],
    named: Sequence[Recipe] = (),
) -> Choice:
    """Try the candidates, and what is `named`, on clips (N, T, 3, H, W) that the detector calls `target`.

    Their maps are made one clip at a time. A candidate without a finite map on each of them is left out.
    """
    candidates = clip_candidates(subject, clips[:1])
    maps: dict[Recipe, Heat] = {}
    unmade: dict[Recipe, str] = {}
    for recipe in dict.fromkeys([*named, *candidates]):
        try:
            made = [
                explain_clips(subject, {"image": clip}, Asked([recipe], target), CLIPS).maps.only
                for clip in clips.split(1)
            ]
        except (LayerError, NonFiniteMapError) as error:
            unmade[recipe] = str(error)
            continue
        maps[recipe] = Heat(
            torch.cat([one.raw.float().cpu() for one in made]), torch.cat([one.empty.cpu() for one in made])
        )
    if not maps:
        return Choice(UNTRIED, candidates[0], next(iter(unmade.values())))
    direction = torch.full((len(clips),), -1.0 if target == "real" else 1.0)
    trial = try_clip_maps(clips, maps, Scorer(margins, direction))
    return choose(trial, [one for one in candidates if one in maps] or list(maps), named, videos, unmade)
