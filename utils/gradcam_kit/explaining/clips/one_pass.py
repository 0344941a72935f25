"""Explaining of clips: which frames matter, and where in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...base.errors import InputError
from ...engine.backward import backward_rules
from ...engine.checks import Checks
from ...engine.clips.families import channels_first, clip_grid
from ...engine.clips.grid import ClipShape
from ...engine.clips.maps import ClipMaps, clip_maps
from ...engine.clips.tubelets import noted_inputs, of_frames, tubelets_of
from ...engine.heads import Target, wants_both
from ...engine.hooks import Tap
from ...engine.layers import Site
from ...engine.maps import refuse_non_finite
from ...engine.recipe import Recipe
from ...engine.tokens import Differentiated, PassPlan, Question, Tokens, token_gradients
from ...judge.check import MapCheck
from ...judge.clips.time import RealClips
from ..asking.request import point_of
from ..explanation import Explanation, RecipeMaps
from ..images import Batch, check_clips
from ..one_pass import BatchRequest, both_classes, explain_batch
from ..subject import Subject
from .checking import ClipChecker, margins_of
from .explanation import ClipExplanation
from .subject import ClipSubject


def explain_images_or_clips(
    subject: Subject | ClipSubject, batch: Batch, asked: BatchRequest, where: str
) -> Explanation:
    """Explain a batch, `image` (B, 3, H, W) or (B, T, 3, H, W), by its subject; errors call it `where`."""
    explain = explain_clips if isinstance(subject, ClipSubject) else explain_batch
    return explain(subject, batch, asked, where)  # type: ignore[arg-type]  # the subject decides


def explain_clips(subject: ClipSubject, batch: Batch, asked: BatchRequest, where: str) -> ClipExplanation:
    """Explain a batch of clips, `image` (B, T, 3, H, W), which errors call `where`.

    Raises InputError for an unusable argument, LayerError for a layer that cannot be explained, and NonFiniteMapError.
    """
    clips = batch["image"]
    check_clips(clips, where)
    asked = replace(asked, recipes=list(map(subject.on(clips).resolved, asked.recipes)))
    if not wants_both(asked.target):
        return _explained(subject, batch, asked)
    fake, real = (_explained(subject, batch, replace(asked, target=one)) for one in ("fake", "real"))
    return replace(fake, **both_classes(fake, real))


def _explained(subject: ClipSubject, batch: Batch, asked: BatchRequest) -> ClipExplanation:
    """Explain by one pass per backward rule; keeps the order of the recipes."""
    passes: dict[str, _Pass] = {}
    for rule in dict.fromkeys(recipe.backward for recipe in asked.recipes):
        some = [recipe for recipe in asked.recipes if recipe.backward == rule]
        passes[rule] = _Pass.of(subject, batch, some, asked.target, rule)
    found = passes[asked.recipes[0].backward].found
    checks = Checks()
    refuse_non_finite(found.prediction["cls"], "the logits", checks)
    checks.read()
    made = [
        RecipeMaps(recipe, {layer: passes[recipe.backward].maps(recipe, layer) for layer in recipe.layers}, site, {})
        for recipe in asked.recipes
        for site in ("output" if not subject.tower.blocks else recipe.site,)
    ]
    return ClipExplanation(
        prediction=found.prediction,
        head=found.head,
        target=found.target,
        made=tuple(made),
        images=batch["image"],
        look=subject.look,
        margins=margins_of(subject, len(batch["image"])),
        frames_apart=subject.frame_logits,
        reals=reals_of(batch),
        checker=partial(_checked, subject),
    )


def reals_of(batch: Batch) -> RealClips | None:
    """Return the batch's `paired_real`, with `has_pair` (B,), or all if it is missing. Raises InputError."""
    clips, shape = batch.get("paired_real"), tuple(batch["image"].shape)
    if clips is None:
        return None
    if not isinstance(clips, Tensor) or tuple(clips.shape) != shape:
        found = tuple(clips.shape) if isinstance(clips, Tensor) else type(clips).__name__
        raise InputError(f"paired_real is {found}: give the real clips in the shape of the clips, {shape}")
    known = batch.get("has_pair")
    return RealClips(clips, torch.ones(len(clips), dtype=torch.bool) if known is None else known)


def _checked(subject: ClipSubject, explanation: Explanation) -> dict[str, list[MapCheck]]:
    """Compute `Explanation.check`, with the same random frames at every call."""
    count = len(explanation.images)
    return ClipChecker(subject, count).checks(explanation.images, explanation, range(count))


class _Pass(NamedTuple):
    """One forward and one backward pass."""

    subject: ClipSubject
    clip: ClipShape
    found: Differentiated
    sites: Mapping[tuple[str, str], tuple[Site, Tokens]]  # layer and site → where it was read, and its tokens
    cut: Sequence[Tensor] = ()  # inputs of convolutions over several frames whose tokens are explained

    @classmethod
    def of(cls, subject: ClipSubject, batch: Batch, recipes: Sequence[Recipe], target: Target, rule: str) -> _Pass:
        clips, tower = batch["image"], subject.tower
        shape = ClipShape(*clips.shape[:2], *clips.shape[3:])
        points = {(layer, recipe.site): None for recipe in recipes for layer in recipe.layers}
        run = partial(subject.run, batch)
        sites = [point_of(tower, *point, run) for point in points]
        head = subject.head._replace(batch=len(clips))
        question = Question(run, head, target, batch.get("label"))
        tubelets = [tubelets_of(tower, recipe, layer) for recipe in recipes for layer in recipe.layers]
        cutting = next((one for one in tubelets if one is not None), None)
        with backward_rules(tower, rule) as constants, noted_inputs(cutting) as cut:
            plan = PassPlan(constants=constants, in_order=partial(_in_order, shape))
            checks = Checks()
            found = token_gradients(tower, sites, question, plan, checks)
            checks.read()
        return cls(subject, shape, found, dict(zip(points, zip(sites, found.tokens, strict=True), strict=True)), cut)

    def maps(self, recipe: Recipe, layer: str) -> ClipMaps:
        site, tokens = self.sites[layer, recipe.site]
        grid = clip_grid(self.subject.tower, layer, tokens.A, self.clip)
        tubelets = tubelets_of(self.subject.tower, recipe, layer)
        if tubelets is not None:
            tokens, grid = of_frames(tokens, grid, tubelets, self.cut[-1])
        size = self.clip.height, self.clip.width
        how = site.norm_epsilon, self.subject.pp_epsilon
        return clip_maps(recipe.method, layer, tokens, grid, size, *how)


def _in_order(clip: ClipShape, taps: Sequence[Tap], gradients: Sequence[Tensor], images: int) -> list[Any]:
    """Sort taps and gradients like `engine.hooks.in_order`; a row may be a clip or a frame."""
    found = []
    for tap, G in zip(taps, gradients, strict=True):
        A, axis = tap.tokens.detach(), tap.site.batch_axis or 0
        if A.ndim == 5:
            found.append((channels_first(tap.site.module, A), channels_first(tap.site.module, G)))
        else:
            rows = clip.clips if A.shape[axis] == clip.clips else clip.clips * clip.frames
            found.append((tap.in_order(A, rows), tap.in_order(G, rows)))
    return found
