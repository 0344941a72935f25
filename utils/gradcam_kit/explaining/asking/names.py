"""The names of maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...engine.recipe import Recipe
from ...engine.targets import Target, wants_both


def names_of(maps: Sequence[tuple[Recipe, str]], one_per_layer: bool = False) -> list[str]:
    """Name maps, given as (recipe, layer): with one recipe the layer; with several the method, or more."""
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
    """True if each of several `named` layers has its own recipe, so that the layer names the map."""
    return len(recipes) > 1 and tuple(one.layer for one in recipes) == named.layers


def explained_names(layers: Sequence[str], target: Target) -> list[str]:
    """Return the names of the maps of `layers`; for target "both" twice, `<layer>_fake` and `<layer>_real`."""
    every = list(dict.fromkeys(layers))
    return (
        [f"{layer}_{one_class}" for layer in every for one_class in ("fake", "real")] if wants_both(target) else every
    )
