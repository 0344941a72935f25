"""One forward and one backward pass for the maps of several recipes.

`engine/tokens.py` reads tokens and gradients, `engine/methods.py` turns them into maps, and `engine/attention.py` makes
maps from a block's attention. The model is left unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..engine.attention import BlockProjection, attention_token_maps
from ..engine.attention_methods import ATTENTION_METHODS
from ..engine.backward import BALANCED, PLAIN, Activations, backward_rules
from ..engine.checks import Checks
from ..engine.completeness import Completeness, SelfTest
from ..engine.heads import Head, HeadReader, Prediction
from ..engine.hooks import NotOneToken, class_token_path
from ..engine.layers import (
    FUSED,
    SCALED,
    SUM,
    LayerError,
)
from ..engine.maps import Canvas, LayerMaps, in_order, layer_maps, to_layer_maps
from ..engine.methods import leftover, signed_maps
from ..engine.real.bank import Neighbours, nearest_beside
from ..engine.real.contrast import CONTRAST, CONTRAST_Z, CONTRASTS, contrast, contrast_z, scaled_mean
from ..engine.recipe import BOTH, Recipe
from ..engine.tokens import (
    Differentiated,
    PassPlan,
    Question,
    Tokens,
    by_layer,
    on_grid,
    reach,
    stacked,
    token_gradients,
)
from ..engine.towers import Grid
from ..engine.towers.attention import HeldLater
from ..engine.towers.tower import Tower
from .asking.request import Asked, Point, Request
from .precision import FP32, matrix_products_in, resolved_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """The result of one pass. `prediction`, `head` and `target` as in `Explanation`; `maps` returns the maps."""

    request: Request
    asked: Asked
    prediction: Prediction
    head: Head
    target: list[str]
    tokens: Mapping[Point, Tokens]
    balanced: Mapping[Point, Tokens] | None  # tokens by the balanced rule, if several rules were requested
    projections: Mapping[BlockProjection, Tensor]
    output_gradients: Mapping[str, Tensor]  # block → ∂score/∂O of its attention
    completeness: Mapping[str, Completeness]  # of layers that are blocks, if requested
    grid: Grid | None
    found: dict[str, Neighbours] = field(default_factory=dict)  # layer → the nearest real tokens, once searched
    beside: dict[str, Tensor] = field(default_factory=dict)  # layer → the pair's nearest tokens, once searched

    def maps(
        self,
        recipe: Recipe | str,
        site: str | None = None,
        pp_epsilon: float | None = None,
        checks: Checks | None = None,
    ) -> dict[str, LayerMaps]:
        """Return the maps of every layer of a recipe: raw (B, h, w), normalised (B, H, W) in [0, 1], float32.

        `recipe` may be a method's name; a method that reads attention has the same maps at every `site`. `checks`:
        collects errors that are found on the device; None: they are raised here.

        Raises:
            InputError: a recipe that the pass was not made for.
            LayerError: a gradient is structurally zero, or the network has no patch tokens, which the method needs.
            NonFiniteMapError: a map is not finite.
        """
        recipe = self._asked_for(recipe, site)
        left = Checks() if checks is None else checks
        canvas = Canvas.of(self.request.size, self.grid)
        parts = {layer: self.asked.parts[layer] for layer in recipe.layers if layer != FUSED}
        if recipe.method in ATTENTION_METHODS:
            found = self._attention_maps(recipe, canvas, parts, left)
        else:
            epsilon = self.request.pp_epsilon if pp_epsilon is None else pp_epsilon
            found = self._token_maps(recipe, canvas, parts, epsilon, left)
        if checks is None:
            left.read()
        return in_order(found, recipe.layers, canvas)

    def _asked_for(self, recipe: Recipe | str, site: str | None) -> Recipe:
        if isinstance(recipe, Recipe):
            return recipe
        wanted = Recipe(recipe, site=site)
        for one in self.request.recipes:
            if one.method == wanted.method and (site is None or one.site == wanted.site):
                return one
        made = "; ".join(dict.fromkeys(f"{one.method} at {one.site}" for one in self.request.recipes))
        raise InputError(f"the pass was not made for {wanted.method!r} at {wanted.site!r}; it was for: {made}")

    def _attention_maps(
        self, recipe: Recipe, canvas: Canvas, parts: Mapping[str, Sequence[str]], checks: Checks
    ) -> dict[str, LayerMaps]:
        if self.grid is None:
            raise LayerError(f"method {recipe.method!r} needs patch tokens, which this detector's network lacks")
        reading = ATTENTION_METHODS[recipe.method]
        token_maps = attention_token_maps(
            reading, self.asked.attention, self.projections, self.output_gradients, len(self.target)
        )
        patches = self.grid.rows * self.grid.columns
        if reading.needs_class_token and any(pair.raw.shape[1] == patches for pair in token_maps.values()):
            raise LayerError(f"method {recipe.method!r} reads the class token, which this backbone lacks")
        return to_layer_maps(token_maps, self.grid, canvas, checks, reading.sum_of or "", parts)

    def _token_maps(
        self,
        recipe: Recipe,
        canvas: Canvas,
        parts: Mapping[str, Sequence[str]],
        pp_epsilon: float,
        checks: Checks,
    ) -> dict[str, LayerMaps]:
        layers = dict.fromkeys(layer for added in parts.values() for layer in added)
        is_contrast = recipe.method in CONTRASTS  # each layer has its own real tokens
        points = {layer: self.asked.points[layer, recipe.site] for layer in layers}
        alike = {layer: layer if is_contrast else point.norm_epsilon for layer, point in points.items()}
        passes = [self.tokens]
        if self.balanced is not None and recipe.backward != PLAIN:
            passes = [self.balanced] if recipe.backward == BALANCED else [self.tokens, self.balanced]
        by_rule: list[dict[str, Tensor]] = []
        reached: dict[str, Tensor] = {}
        leftovers = None
        for tokens in passes:
            stacks = stacked({layer: tokens[layer, recipe.site] for layer in layers}, alike)
            patches = on_grid(stacks, self.grid)
            reached = reached or by_layer(reach(stacks, self.grid), axis=1)
            if is_contrast:
                signed = {some: self._contrast(recipe.method, some[0], *of) for some, of in patches.items()}
            else:
                signed = signed_maps(recipe.method, patches, pp_epsilon)
            by_rule.append(by_layer(signed))
            if recipe.method == "hirescam" and len(passes) == 1:  # the method whose sum a LayerNorm can make 0
                leftovers = by_layer({some: leftover(A, G, float(alike[some[0]])) for some, (A, G) in patches.items()})
        return layer_maps(by_rule, reached, canvas, checks, parts, leftovers, is_contrast)

    def evidence(self, recipe: Recipe) -> Tensor:
        """Return the signed contrast (B, L, h, w) at each layer of a contrast map, by the plain gradient."""
        return torch.stack(self._contrasts(CONTRAST, recipe), dim=1)

    def standard_evidence(self, recipe: Recipe) -> Tensor:
        """Return the standardised contrast (B, h, w), averaged over the layers of a contrast map. Needs a bank."""
        return scaled_mean(self._contrasts(CONTRAST_Z, recipe))

    def _contrasts(self, method: str, recipe: Recipe) -> list[Tensor]:
        parts = [part for layer in recipe.layers for part in self.asked.parts[layer]]
        on_image = on_grid({part: self.tokens[part, recipe.site] for part in parts}, self.grid)
        return [self._contrast(method, part, *of) for part, of in on_image.items()]

    def _contrast(self, method: str, layer: str, A: Tensor, G: Tensor) -> Tensor:
        """Return the signed contrast (B, h, w) for tokens `A` and gradients `G`, (B, C, h, w) each."""
        real = self._compared_with(layer, A)
        A, G = A.to(real.dtype), G.to(real.dtype)
        if method == CONTRAST:
            return contrast(A, G, real)
        return contrast_z(A, G, real, self._neighbours(layer, A).along(G))

    def _compared_with(self, layer: str, A: Tensor) -> Tensor:
        """Return the real tokens (B, C, h, w) to compare `A` with: the pair's, or the bank's."""
        pairs, has_pair = self.request.real.get(self.asked.names.get(layer, layer)), self.request.has_pair
        if pairs is None:
            return self._neighbours(layer, A).mean
        if layer not in self.beside:  # several maps and the verdict compare the same tokens
            self.beside[layer] = nearest_beside(A.detach().to(pairs.dtype), pairs)
        beside = self.beside[layer]
        if has_pair is None:
            return beside
        return torch.where(has_pair.to(A.device)[:, None, None, None], beside, self._neighbours(layer, A).mean)

    def _neighbours(self, layer: str, A: Tensor) -> Neighbours:
        """Find the nearest real tokens for a layer's tokens (B, C, h, w), once."""
        if layer in self.found:
            return self.found[layer]
        if self.request.bank is None:
            raise InputError(
                "a contrast map compares patches with those of real images, but there are none: give a bank"
                " (--bank FOLDER, or bank=Bank.of(model, images) in Python), or calibrate on images that the detector"
                " calls real",
                "method",
            )
        self.found[layer] = self.request.bank.nearest(self.asked.names.get(layer, layer), A, self.request.videos)
        return self.found[layer]


def capture(
    tower: Tower,
    forward: Callable[[], Any],
    head: HeadReader,
    grid: Grid | None,
    request: Request,
    checks: Checks | None = None,
) -> Capture:
    """Run `forward` once and differentiate once, for all recipes of the request.

    Args:
        tower: the tower of the model that `forward` runs; the model is in evaluation mode during the pass.
        forward: returns an output that `head` can read.
        grid: grid of the patches on the images; None for a convolutional network.
        checks: collects values that the device computes first, for the caller to read; None: they are read here. They
            raise NotOneToken if the same call has to be repeated.

    Raises:
        InputError: an unknown method, site, target or backward rule, a backward rule that this tower lacks,
            or an output of `forward` without logits.
        LayerError: a layer that cannot be explained.
    """
    recipes = tuple(request.recipes)
    asked = tower.once(recipes, lambda: Asked.of(tower, forward, recipes))
    backward, held = (BALANCED, HeldLater()) if asked.backward == BOTH else (asked.backward, None)
    products: Callable[[], AbstractContextManager[Any]] = nullcontext
    if request.precision != FP32:
        device = next(tower.model.parameters()).device
        products = partial(matrix_products_in, resolved_precision(request.precision, device))
    tested = [*asked.tests.values()] if request.completeness and asked.backward == BALANCED else None
    self_test = None if tested is None else SelfTest(tested, Activations())
    read, reads_attention = asked.read, bool(asked.attention.read)
    question = Question(forward, head, request.target, request.label)

    def one_pass(use_path: bool) -> tuple[Differentiated, Mapping[BlockProjection, Tensor]]:
        path = class_token_path(tower, asked.last_block, backward != PLAIN) if use_path else None
        rules: AbstractContextManager[AbstractContextManager[Any]] = nullcontext(nullcontext())
        if backward != PLAIN:
            rules = backward_rules(tower, backward, self_test.activations if self_test else None, held, asked.first)
        left = Checks() if checks is None else checks
        watched: AbstractContextManager[Mapping[BlockProjection, Tensor]] = nullcontext({})
        if reads_attention:
            watched = asked.attention.kept()
        with watched as projections, rules as constants:
            plan = PassPlan(path, self_test, constants, products, held)
            found = token_gradients(tower, read, question, plan, left)
            if found.more_tokens is not None:
                left.append((found.more_tokens, partial(_refuse_more_tokens, tower)))
            if checks is None:
                left.read()
            return found, projections

    try:
        found, projections = one_pass(not reads_attention and held is None)
    except NotOneToken:
        tower.reads_more_tokens = True
        found, projections = one_pass(False)
    count = len(asked.points)
    balanced = None
    if found.balanced is not None:
        balanced = dict(zip(asked.points, found.balanced[:count], strict=True))
    complete = dict(zip(asked.tests, found.completeness, strict=True)) if self_test else {}
    for layer in (SUM, SCALED):
        if layer in asked.parts and complete:
            complete[layer] = Completeness.worst([complete[block] for block in asked.parts[layer]])
    return Capture(
        request=request,
        asked=asked,
        prediction=found.prediction,
        head=found.head,
        target=found.target,
        balanced=balanced,
        tokens=dict(zip(asked.points, found.tokens[:count], strict=True)),
        projections=projections,
        output_gradients=asked.attention.output_gradients(found.tokens[count:]) if reads_attention else {},
        completeness={layer: complete[layer] for layer in asked.parts if layer in complete},
        grid=grid,
    )


def _refuse_more_tokens(tower: Tower, more_tokens: Tensor) -> None:
    if more_tokens:
        tower.reads_more_tokens = True
        raise NotOneToken
