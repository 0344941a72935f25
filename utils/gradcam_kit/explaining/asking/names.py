"""The names that maps go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...engine.recipe import Recipe
from ...engine.targets import Target, wants_both


def names_of(maps: Sequence[tuple[Recipe, str]], one_per_layer: bool = False) -> list[str]:
    """The names of maps, given as (recipe, layer): of one recipe the layer; of several the method, or more."""
    if one_per_layer or len({recipe for recipe, _ in maps}) == 1:
        return [layer for _, layer in maps]
    spellings: list[Callable[[Recipe, str], str]] = [
        lambda recipe, layer: recipe.method,
        lambda recipe, layer: f"{recipe.method}_{layer}",
        lambda recipe, layer: f"{recipe.method}_{recipe.backward}",
        lambda recipe, layer: f"{recipe.method}_{layer}_{recipe.site}_{recipe.backward}",
    ]
    counts = [Counter(spell(*one) for one in maps) for spell in spellings]
    names = []
    for i, one in enumerate(maps):
        full = f"{spellings[-1](*one)}_{i}"  # recipes that share this layer
        names.append(
            next((spell(*one) for spell, count in zip(spellings, counts, strict=True) if count[spell(*one)] == 1), full)
        )
    return names


def one_per_layer(recipes: Sequence[Recipe], named: Recipe) -> bool:
    """Whether `recipes` are one for each of several layers that were `named`, so that the layer names the map."""
    return len(recipes) > 1 and tuple(one.layer for one in recipes) == named.layers


def explained_names(layers: Sequence[str], target: Target) -> list[str]:
    """The names under which the maps of `layers` come: twice, `<layer>_fake` and `<layer>_real`, for target "both"."""
    every = list(dict.fromkeys(layers))
    return (
        [f"{layer}_{one_class}" for layer in every for one_class in ("fake", "real")] if wants_both(target) else every
    )
