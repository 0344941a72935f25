"""The request for a pass, and the points where it must read the tower."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...engine.attention import AttentionPass
from ...engine.attention_methods import ATTENTION_METHODS
from ...engine.frozen import frozen_for_explaining
from ...engine.heads import Target
from ...engine.hooks import LastBlock, last_block
from ...engine.layers import SCALED, SUM, LayerError, Site, name_in_tower, named_layers, site_of_layer, summed_blocks
from ...engine.methods import DEFAULT_EPSILON, check_method
from ...engine.real.bank import TokenBank
from ...engine.recipe import BOTH, RESIDUAL, Recipe
from ...engine.spatial_layers import count_runs, is_shareable, last_run
from ...engine.towers.tower import Tower
from ..precision import FP32

Point = tuple[str, str]  # a layer as the caller wrote it, and the site where it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The request for one pass.

    Args:
        recipes: each with named layers. For several backward rules, or BOTH, one graph serves a plain and a balanced
            backward pass.
        target: see `engine.heads.score_weights`; not "both".
        size: (H, W) of the normalised maps.
        label: (B,), for target "label".
        completeness: with "balanced", test by a second backward pass whether the shares of each block add up.
        precision: one of `base.allowed.BACKWARD_PRECISIONS`, for the matrix products of the backward pass. The test of
            completeness always uses float32.
        bank: real tokens for contrast maps.
        videos: each image's video, whose own frames the bank skips; None: unknown.
        real: layer → tokens (B, C, h, w) of the real images these were made from, used instead of the bank.
        has_pair: (B,) bool, which images have tokens in `real`; None: all. The others are compared with the bank.
    """

    recipes: Sequence[Recipe]
    target: Target
    size: tuple[int, int]
    label: Tensor | None = None
    completeness: bool = False
    precision: str = FP32
    pp_epsilon: float = DEFAULT_EPSILON
    bank: TokenBank | None = None
    videos: Sequence[Hashable] | None = None
    real: Mapping[str, Tensor] = field(default_factory=dict)
    has_pair: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The points where recipes read the tower. They stay the same as long as the tower does."""

    parts: Mapping[str, Sequence[str]]  # layer of any recipe → the layers that its map is made of
    names: Mapping[str, str]  # these layers → their names in the tower
    points: Mapping[Point, Site]
    attention: AttentionPass
    backward: str  # the backward rule; BOTH for several, which one graph serves
    tests: Mapping[str, Site]  # those of the layers that are blocks, and where their completeness is tested
    read: tuple[Site, ...]  # the sites whose gradients the pass computes: the points, then the attention's
    first: int  # the first block that is read
    last_block: LastBlock | None  # for the class token's path; None: the tower has none, or these layers rule it out

    @classmethod
    def of(cls, tower: Tower, forward: Callable[[], Any], recipes: Sequence[Recipe]) -> Asked:
        for recipe in recipes:
            check_method(recipe.method)
        parts: dict[str, Sequence[str]] = {}
        points: dict[Point, Site] = {}
        by_attention: dict[str, None] = {}
        captured: dict[str, None] = {}
        for recipe in recipes:
            made_of = {layer: summed_blocks(tower, layer) for layer in recipe.layers if layer in (SUM, SCALED)}
            if made_of and recipe.method in ATTENTION_METHODS and ATTENTION_METHODS[recipe.method].sum_of is None:
                raise LayerError(
                    f"method {recipe.method!r} has no maps to add for layer {SUM!r}: its map of a block follows from"
                    " all blocks before it already; name the last block",
                    "layers",
                )
            made_of |= {layer: (layer,) for layer in named_layers(recipe.layers)}
            parts.update({layer: made_of.get(layer, ()) for layer in recipe.layers})
            read = dict.fromkeys(part for added in made_of.values() for part in added)
            captured.update(read)
            if recipe.method in ATTENTION_METHODS:
                by_attention.update(read)
            else:
                points.update({(layer, recipe.site): point_of(tower, layer, recipe.site, forward) for layer in read})
        methods = [recipe.method for recipe in recipes if recipe.method in ATTENTION_METHODS]
        attention = AttentionPass.of(tower, list(by_attention), methods)
        if attention.explained and not attention.differentiated:
            # No gradient is needed, but it alone tells whether the score depends on these layers at all.
            points.update({(layer, RESIDUAL): point_of(tower, layer, RESIDUAL, forward) for layer in by_attention})
        names = {layer: name_in_tower(tower, layer) for layer in captured}
        tests = {layer: site_of_layer(tower, layer, RESIDUAL) for layer, name in names.items() if name in tower.blocks}
        rules = {recipe.backward for recipe in recipes}
        backward = rules.pop() if len(rules) == 1 else BOTH
        reads = *points.values(), *attention.output_sites()
        first = min(map(tower.place, names.values()), default=0)
        return cls(parts, names, points, attention, backward, tests, reads, first, last_block(tower, reads))


def point_of(tower: Tower, layer: str, site: str, forward: Callable[[], Any]) -> Site:
    """Return the point where a layer is read; for a module that runs several times, also in which run."""
    point = site_of_layer(tower, layer, site)
    if point.reads_input or not is_shareable(point.module):
        return point

    name = name_in_tower(tower, layer)

    def runs() -> Mapping[str, int]:
        with frozen_for_explaining(tower.model, tower.structure):
            return count_runs(tower.named, forward)

    run = tower.once(("run", name), lambda: last_run(name, tower.named, tower.once("runs", runs)))
    return replace(point, run=run)
