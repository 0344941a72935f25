"""Explaining of a batch by one or more recipes: one pass per backward rule, and per class for target "both"."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..base.allowed import TRANSPLANT
from ..base.errors import InputError
from ..engine.checks import Checks
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import Target, wants_both
from ..engine.hooks import NotOneToken
from ..engine.maps import LayerMaps, refuse_non_finite
from ..engine.real.contrast import CONTRASTS
from ..engine.recipe import BALANCED, Recipe, one_per_layer
from .capture import Capture
from .checking import check_explanation, verdicts_of
from .explanation import Explanation, RecipeMaps
from .images import Batch, check_pixels, check_shape
from .real_tokens import exchange_in, real_tokens
from .subject import Subject
from .transplant_explanation import explain_by_transplant

IMAGE = "data_dict['image']"  # in errors
MIXES = "mixes images"  # key of a tower's fact, once tested
MIXED = {torch.float16: 0.03, torch.bfloat16: 0.1, torch.float64: 1e-6}  # tolerance of scores; default 1e-3


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The request for a batch. `recipes` have no open fields; without layers they use the default ones."""

    recipes: Sequence[Recipe]
    target: Target
    completeness: bool = True


class Pending:
    """An explanation whose kernels may still be running; more can be launched before `result` waits for it.

    `explained` computes it and adds to the `Checks` the values to verify first. `unchecked` is its return value: its
    tensors can be used on the device, but they are only valid once `result` has returned.
    """

    def __init__(self, explained: Callable[[Checks], Explanation]) -> None:
        self._explained = explained
        self._checks = Checks()
        self.unchecked = explained(self._checks)
        self._checks.send()

    def result(self) -> Explanation:
        """Wait and return the explanation. It is recomputed if the head reads more than the class token.

        Raises the errors of the checks.
        """
        try:
            self._checks.read()
        except NotOneToken:  # the tower now remembers it
            return Pending(self._explained).result()
        return self.unchecked


def explain_batch(subject: Subject, batch: Batch, asked: BatchRequest, image_name: str) -> Explanation:
    """Explain a user's batch. Errors as in `explaining.api.explain`; they call the images `image_name`."""
    check_shape(batch["image"], image_name)

    def explained(checks: Checks) -> Explanation:
        check_pixels(batch["image"], image_name, checks, subject.check_range)
        return explained_in(subject, batch, asked, checks)

    return Pending(explained).result()


def explained_in(subject: Subject, batch: Batch, asked: BatchRequest, checks: Checks) -> Explanation:
    """Explain a batch of checked images without waiting for the device: values to verify go to `checks`."""
    if any(recipe.method == TRANSPLANT for recipe in asked.recipes):
        if len(asked.recipes) > 1:
            raise InputError("method 'transplant' cannot share a pass with other recipes: use it alone")
        return explain_by_transplant(subject, batch, asked.target)
    asked = replace(asked, recipes=list(dict.fromkeys(map(subject.resolved, asked.recipes))))
    if not wants_both(asked.target):
        return _explained(subject, batch, asked, checks)
    fake, real = (_explained(subject, batch, replace(asked, target=one), checks) for one in ("fake", "real"))
    return replace(fake, **both_classes(fake, real))


def _explained(subject: Subject, batch: Batch, asked: BatchRequest, checks: Checks) -> Explanation:
    """Explain by one pass, or a second one for recipes that need a separate balanced pass; keeps their order."""
    recipes = list(asked.recipes)
    paired = batch.get("paired_real")
    compares = subject.bank is not None or paired is not None
    real = None if paired is None else real_tokens(subject, paired, batch.get("has_pair"))
    if compares:
        recipes.append(subject.evidence_recipe(recipes))
    of: dict[Recipe, Capture] = {}
    # Several rules share a pass, unless completeness is tested, or an attention method needs the balanced rule.
    balanced = [one for one in recipes if one.backward == BALANCED]
    alone = balanced if asked.completeness else [one for one in balanced if one.needs_own_pass]
    for some in (dict.fromkeys(one for one in recipes if one not in alone), dict.fromkeys(alone)):
        if some:
            captured = subject.capture(batch, list(some), asked.target, None, asked.completeness, checks, real)
            of |= dict.fromkeys(some, captured)
    # Only a contrast map needs it, and only a bank has a spread of neighbours.
    by_place = subject.bank is not None and any(one.method in CONTRASTS for one in asked.recipes)
    first = of[asked.recipes[0]]
    if subject.reading.may_mix and len(batch["image"]) > 1:
        subject.tower.once(MIXES, lambda: _note_mixing(subject, batch["image"], first.prediction["cls"], checks))
    subject.note_unread_border(batch["image"], first.grid)
    made = []
    for recipe in asked.recipes:
        of_recipe = of[recipe]
        maps = of_recipe.maps(recipe, checks=checks)
        site = "output" if of_recipe.grid is None else recipe.site
        complete = {layer: of_recipe.completeness[layer] for layer in recipe.layers if layer in of_recipe.completeness}
        made.append(RecipeMaps(recipe, maps, site, complete))
    # The gradient of a logit that is not finite may be finite, but it explains no decision.
    refuse_non_finite(first.prediction["cls"], "the logits", checks)
    return Explanation(
        prediction=first.prediction,
        head=first.head,
        target=first.target,
        made=tuple(made),
        images=batch["image"],
        look=subject.look,
        evidence=None if not compares else of[recipes[-1]].evidence(recipes[-1]),
        exchange=exchange_in(subject, of[recipes[-1]]) if asked.completeness and subject.bank is not None else None,
        standard=of[recipes[-1]].standard_evidence(recipes[-1]) if by_place else None,
        separates=subject.choice is None or subject.choice.separates,
        one_per_layer=one_per_layer(asked.recipes, subject.recipe),
        judged=verdicts_of,
        checker=partial(check_explanation, subject, batch.get("video")),
    )


def _note_mixing(subject: Subject, images: Tensor, logits: Tensor, checks: Checks) -> None:
    """Warn if a model's scores for an image depend on the rest of the batch: they change, or have a gradient there."""
    beside = torch.cat([images[:1], -images[1:2].flip(-1)])

    def beside_another() -> Tensor:
        return subject.logits(beside)[0]

    def tell(differs: Tensor) -> None:
        if differs[1] or (differs[0] and torch.equal(beside_another(), beside_another())):  # else random for any
            norms = [name for name, one in subject.tower.model.named_modules() if isinstance(one, _NormBase)]
            here = [name for name in norms if subject.tower.model.get_submodule(name).running_mean is None]
            why = f", by the batch's own mean in {here[0]} (track_running_stats=False)" if here else ""
            warnings.warn(
                f"{subject.head.detector} gives an image different scores in different batches{why}: each map"
                " explains the whole batch; explain images one at a time",
                stacklevel=2,
            )

    exact = torch.promote_types(logits.dtype, torch.float32)
    usual, (again, reaches) = logits[0].to(exact), _reach_of_first(subject, beside)
    allowed = MIXED.get(logits.dtype, 1e-3) * usual.abs().max()
    checks.append((torch.stack([(usual - again.to(exact)).abs().max() > allowed, reaches]), tell))


def _reach_of_first(subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first image's logits (K,), and whether they have a gradient at the other images."""
    with frozen_for_explaining(subject.tower.model, subject.tower.structure):
        leaf = images.detach().clone().requires_grad_()
        head = subject.head._replace(batch=len(images))
        first = head.read(subject.run({"image": leaf.clone()}))[0]["cls"][0]
        found = torch.autograd.grad(first.sum(), leaf, allow_unused=True)[0] if first.requires_grad else None
    size = images.new_zeros(len(images)) if found is None else found.flatten(1).abs().amax(dim=1)
    return first.detach(), (size[1:] > 1e-4 * size[0]).any()


def both_classes(fake: Explanation, real: Explanation) -> dict[str, Any]:
    """Return the fields of an explanation with the maps of both classes, as `<layer>_fake` and `<layer>_real`."""
    made = []
    for of_fake, of_real in zip(fake.made, real.made, strict=True):
        layers: dict[str, LayerMaps] = {}
        completeness = {}
        for layer in of_fake.layers:
            for name, one in ((f"{layer}_fake", of_fake), (f"{layer}_real", of_real)):
                layers[name] = one.layers[layer]
                if layer in one.completeness:
                    completeness[name] = one.completeness[layer]
        made.append(of_fake._replace(layers=layers, completeness=completeness))
    return {"target": ["both"] * len(fake.target), "made": tuple(made)}
