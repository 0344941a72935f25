"""The choice of a map for a clip detector: the one whose hottest cells, in time and space, matter most."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...base.allowed import AUTO
from ...base.errors import InputError
from ...engine.backward import BALANCED, PLAIN, can_balance
from ...engine.layers import LayerError
from ...engine.maps import NonFiniteMapError
from ...engine.recipe import NORMED, RESIDUAL, Recipe
from ...judge.choosing import trial_images
from ...judge.clips.time import ClipMargins, RealClips
from ...judge.clips.trial import try_clip_maps
from ...judge.trial import CandidateMaps, Scorer
from ...judge.verdict import UNTRIED, Choice, choose
from ..images import Batch, check_clips
from ..one_pass import BatchRequest
from .checking import margins_of
from .one_pass import explain_clips, reals_of
from .subject import ClipSubject

CLIPS = "clips"  # in errors
CLIPS_TRIED = 16  # maximum clips for choosing a map
METHODS_TRIED = ("gradcam", "hirescam", "layercam")


def clip_candidates(subject: ClipSubject) -> list[Recipe]:
    """List the candidates, restricted by the subject's recipe; the first is the fallback."""
    named = subject.recipe if subject.recipe.is_open else Recipe.open()
    here = named.layers if AUTO not in named.layers and named.layers else (subject.default_layer(),)
    blocks, balanced = subject.tower.blocks, can_balance(subject.tower)
    found = [Recipe(method, layer) for layer in here for method in METHODS_TRIED]
    if blocks:  # later blocks mix tokens of different places
        depths = here if here == named.layers else tuple(dict.fromkeys((blocks[0], blocks[len(blocks) // 2], *here)))
        found += [Recipe("hirescam", one, *((RESIDUAL, BALANCED) if balanced else (NORMED, PLAIN))) for one in depths]
    if named.method != AUTO:
        found = [replace(one, method=named.method) for one in found]
    fitting = [one for one in found if named.site in (AUTO, one.site) and named.backward in (AUTO, one.backward)]
    return list(dict.fromkeys(fitting)) or [replace(named.closed(), layers=here)]


def choose_clip_map(
    subject: ClipSubject,
    margins: ClipMargins,
    clips: Tensor,
    target: str,
    videos: Sequence[Hashable],
    named: Sequence[Recipe] = (),
    reals: RealClips | None = None,
) -> Choice:
    """Try the candidates and the `named` recipes on clips (N, T, 3, H, W) that the detector calls `target`.

    Maps are made one clip at a time. A candidate without a finite map for every clip is dropped. If the real clips of
    at least half of the clips are known, these are the fill, and the other clips are skipped.
    """
    fill = None
    if reals is not None and reals.paired.float().mean() >= 0.5:
        kept = reals.paired.nonzero().flatten().tolist()
        clips, fill, videos = clips[kept], reals.clips[kept], [videos[i] for i in kept]
    candidates = clip_candidates(subject.on(clips))
    maps: dict[Recipe, CandidateMaps] = {}
    unmade: dict[Recipe, str] = {}
    for recipe in dict.fromkeys([*named, *candidates]):
        try:
            made = [
                explain_clips(subject, {"image": clip}, BatchRequest([recipe], target), CLIPS).maps.only
                for clip in clips.split(1)
            ]
        except (LayerError, NonFiniteMapError) as error:
            unmade[recipe] = str(error)
            continue
        maps[recipe] = CandidateMaps(
            torch.cat([one.raw.float().cpu() for one in made]), torch.cat([one.empty.cpu() for one in made])
        )
    if not maps:
        return Choice(UNTRIED, candidates[0], next(iter(unmade.values())))
    direction = torch.full((len(clips),), -1.0 if target == "real" else 1.0)
    trial = try_clip_maps(clips, maps, Scorer(margins, direction), fill)
    return choose(trial, [one for one in candidates if one in maps] or list(maps), named, videos, unmade)


def choose_on_batches(
    subject: ClipSubject,
    batches: Sequence[Batch],
    target: str,
    sizes: tuple[int, int] = (CLIPS_TRIED, CLIPS_TRIED),
    named: Sequence[Recipe] = (),
) -> Choice:
    """Choose a map on the first clips of the batches that the detector calls fake, or else real.

    Args:
        batches: each holds `image` (B, T, 3, H, W), and may hold `video`, a name per clip, and `paired_real`, the real
            clips that these were made from, of the same shape.
        sizes: number of clips to use (at most CLIPS_TRIED), and clips per pass.

    Raises:
        InputError: no clip, or clips of several shapes.
    """
    device = next((parameter.device for parameter in subject.tower.model.parameters()), None)
    for batch in batches:
        check_clips(batch["image"], CLIPS)
        reals_of(batch)
    shapes = sorted({tuple(batch["image"].shape[1:]) for batch in batches})
    if len(shapes) > 1:
        raise InputError(f"clips have shapes {', '.join(map(str, shapes))}: give clips of one length and size")
    tensors = "image", "paired_real"
    there = [{**batch, **{name: batch[name].to(device) for name in tensors if name in batch}} for batch in batches]
    margins = margins_of(subject, sizes[1])
    given = trial_images(margins, there, min(CLIPS_TRIED, sizes[0]), target)
    reals = None
    if given.paired is not None and given.has_pair is not None and given.target[0] != "real":
        reals = RealClips(given.paired, given.has_pair)
    return choose_clip_map(subject, margins, given.images, given.target[0], given.videos, named, reals)
