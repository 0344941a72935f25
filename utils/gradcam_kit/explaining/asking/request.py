"""What one pass is asked for, and where it has to read the tower."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...engine.attention import AttentionPass
from ...engine.attention_methods import ATTENTION_METHODS
from ...engine.frozen import frozen_for_explaining
from ...engine.layers import (
    SCALED,
    SUM,
    LayerError,
    Site,
    name_in_tower,
    named_layers,
    site_of_layer,
    summed_blocks,
)
from ...engine.methods import DEFAULT_EPSILON, check_method
from ...engine.real.bank import TokenBank
from ...engine.recipe import RESIDUAL, Recipe
from ...engine.spatial_layers import count_runs, is_shareable, last_run
from ...engine.targets import Target
from ...engine.towers.tower import Tower
from ..precision import FP32

Point = tuple[str, str]  # a layer as the caller wrote it, and the site where it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one pass is asked for.

    Args:
        recipes: each with its layers named. Of several backward rules, or of BOTH, one graph serves a plain backward
            pass and a balanced one.
        target: see `engine.heads.score_weights`; not "both".
        size: (H, W) of the normalised maps.
        label: (B,), for target "label".
        completeness: with "balanced", whether to test if the shares of each block add up, by a second backward pass.
        precision: one of `base.allowed.BACKWARD_PRECISIONS`, of the matrix products of the backward pass. The test of
            completeness is always float32's.
        bank: what contrasts compare tokens with.
        videos: of each image, whose own frames the bank leaves out; None: not known.
        real: layer → tokens (B, C, h, w) of the real images that these were made from, compared with instead of the
            bank's.
        has_pair: (B,) bool, which images `real` has tokens of; None: of all. The others are compared with the bank.
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
    """Where recipes have to read the tower. The answer stays the same while the tower does."""

    parts: Mapping[str, Sequence[str]]  # layer of any recipe → the layers that its map is made of
    points: Mapping[Point, Site]
    attention: AttentionPass
    named_blocks: Sequence[str]  # those of the layers that are blocks, as they were named
    first: int  # the first block that is read

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
            _refuse_sums([recipe.method] if made_of else [])
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
        blocks = [layer for layer, name in names.items() if name in tower.blocks]
        return cls(parts, points, attention, blocks, min(map(tower.place, names.values()), default=0))


def point_of(tower: Tower, layer: str, site: str, forward: Callable[[], Any]) -> Site:
    """Where a layer is read; of a module that runs several times, in which run."""
    point = site_of_layer(tower, layer, site)
    if point.reads_input or not is_shareable(point.module):
        return point

    name = name_in_tower(tower, layer)

    def runs() -> Mapping[str, int]:
        with frozen_for_explaining(tower.model, tower.structure):
            return count_runs(tower.named, forward)

    run = tower.once(("run", name), lambda: last_run(name, tower.named, tower.once("runs", runs)))
    return replace(point, run=run)


def _refuse_sums(methods: Iterable[str]) -> None:
    """Raises LayerError for methods whose maps do not add over blocks."""
    for method in methods:
        if method in ATTENTION_METHODS and ATTENTION_METHODS[method].sum_of is None:
            raise LayerError(
                f"method {method!r} has no maps to add for layer {SUM!r}: its map of a block follows from all blocks"
                " before it already; name the last block",
                "layers",
            )
