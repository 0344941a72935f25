"""A recipe for a map: method, layers, the site where it reads a block, and the backward rule; and the maps' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..base.allowed import AUTO, BACKWARDS, SITES
from ..base.errors import InputError
from .attention_methods import ATTENTION_METHODS
from .heads import Target, wants_both
from .real.contrast import CONTRASTS

PLAIN, BALANCED, BOTH = BACKWARDS
NORMED, RESIDUAL = SITES
ATTENTION_SITE = "attention"  # for methods that read a block's attention, whichever site is requested


class ModuleLayer(str):
    """A layer given as a module; it gets its name when the tower is known."""

    module: nn.Module

    def __new__(cls, module: nn.Module) -> ModuleLayer:
        self = super().__new__(cls, f"<{type(module).__name__} {id(module):x}>")
        self.module = module
        return self


@dataclass(frozen=True, slots=True, init=False)
class Recipe:
    """Says how to make one map, or the maps of several layers. Hashable; equal recipes make equal maps.

    Args:
        method: a name of `METHODS` or `ATTENTION_METHODS`, "transplant", or "auto".
        layers: one layer or several: module names, block numbers (-1: the last) or modules. "fused" is the mean of the
            other layers' normalised maps, "sum" the sum of all blocks' raw maps. None: the last block, or the last
            grid of a convolutional network. For a contrast in a network with blocks, None means "scaled", the mean of
            every third block's map, each scaled to unit deviation.
        site: "layer_norm1" (the block's normalised input) or "residual" (the residual stream); None: the first that
            fits the method. Attention methods only have "attention", contrasts only "residual".
        backward: "plain", "balanced" or "both" (the two maps, each scaled to unit deviation, added); None: "plain".

    The trial (`choose`) fills in each field that is "auto".

    Raises:
        InputError: a layer is none of these.
    """

    method: str
    layers: tuple[str, ...]
    site: str
    backward: str

    def __init__(
        self, method: str | None = None, layers: Any = None, site: str | None = None, backward: str | None = None
    ) -> None:
        method = "gradcam" if method is None else method
        if not isinstance(method, str):
            raise InputError(
                f"method is {method!r}: one recipe has one method; recipes=[…] serves several from one pass"
            )
        site = RESIDUAL if method in CONTRASTS else NORMED if site is None else site
        set_field = object.__setattr__
        set_field(self, "method", method)
        set_field(self, "layers", layer_names(layers))
        if method in ATTENTION_METHODS and site:
            site = ATTENTION_SITE
        elif site == ATTENTION_SITE:  # of another method's recipe
            site = NORMED
        set_field(self, "site", site)
        set_field(self, "backward", PLAIN if backward is None else backward)

    @classmethod
    def of(cls, value: Any) -> Recipe:
        """Return the recipe for `value`: a recipe, a method's name, or a mapping of the four fields."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str) or value is None:
            return cls(value)
        if isinstance(value, Mapping) and set(value) <= {"method", "layers", "layer", "site", "backward"}:
            return cls(
                value.get("method"), value.get("layers", value.get("layer")), value.get("site"), value.get("backward")
            )
        raise InputError(f"recipe is {value!r}: give Recipe(method, layers=…, site=…, backward=…) or a method's name")

    @classmethod
    def open(cls, layers: Any = AUTO, site: str | None = None, backward: str | None = None) -> Recipe:
        """Return a recipe whose missing fields the trial fills in."""
        return cls(AUTO, AUTO if layers is None else layers, site or AUTO, backward or AUTO)

    @classmethod
    def control(cls, name: str) -> Recipe:
        """Return the recipe of a baseline map, which ignores the detector."""
        return cls(name, (), "")

    @property
    def is_control(self) -> bool:
        """True for a baseline map, which ignores the detector."""
        return not self.site

    @property
    def needs_own_pass(self) -> bool:
        """True for an attention method with the balanced rule: it shares no pass with other backward rules."""
        return self.method in ATTENTION_METHODS and self.backward == BALANCED

    @property
    def is_open(self) -> bool:
        """True if a trial must choose the method or the layer."""
        return AUTO in (self.method, *self.layers)

    def closed(self) -> Recipe:
        """Return the recipe with its open fields set to their defaults: Grad-CAM, default layer, site and backward."""
        method, site, backward = (None if name == AUTO else name for name in (self.method, self.site, self.backward))
        return Recipe(method, None if AUTO in self.layers else self.layers, site, backward)

    def at(self, layer: str) -> Recipe:
        """Return the recipe for `layer` only."""
        return Recipe(self.method, layer, self.site, self.backward)

    def using(self, chosen: Recipe) -> Recipe:
        """Return the recipe `chosen`. If this recipe names layers, they replace those of `chosen`."""
        named = bool(self.layers) and AUTO not in self.layers
        return replace(chosen, layers=self.layers) if named else chosen

    @property
    def layer(self) -> str:
        """Return the name of the only layer of a single map's recipe; "" if it names none."""
        return self.layers[0] if self.layers else ""

    @property
    def kind(self) -> str:
        """Return method, site and backward rule as one text. Values of maps of different kinds are not comparable."""
        return f"{self.method} {self.site} {self.backward}"

    @property
    def where(self) -> str:
        """Return the site, with the backward rule unless it is "plain"."""
        return where(self.site, self.backward)

    @property
    def title(self) -> str:
        """Return the heading for tables and figures."""
        return f"{self.method} at {self.layer}, {self.where}"

    def facts(self) -> dict[str, str]:
        """Return the fields of a single map's recipe by name, as written to files."""
        return {"method": self.method, "layer": self.layer, "site": self.site, "backward": self.backward}

    def __str__(self) -> str:
        return f"{self.method} at {self.layer} ({self.site}, {self.backward})"


def where(site: str, backward: str) -> str:
    """Return the site, with the backward rule unless it is "plain"."""
    return site if backward == PLAIN else f"{site}, {backward}"


def layer_names(layers: Any) -> tuple[str, ...]:
    """Return the names of layers given as None, a name, a number, a module, or several of these. Raises InputError."""
    if layers is None:
        return ()
    one = _layer_name(layers)
    if one is not None:
        return (one,)
    try:
        names = [_layer_name(layer) for layer in layers]
    except TypeError:  # not one of several
        names = [None]
    found = tuple(name for name in names if name is not None)
    if len(found) < len(names):
        raise InputError(
            f"layers is {layers!r}: give names of modules, numbers of blocks (-1: the last) or modules, one or several",
            "layers",
        )
    return found


def _layer_name(layer: Any) -> str | None:
    """Return the name of a layer given as name, number or module; None for anything else."""
    if isinstance(layer, str):
        return layer
    if isinstance(layer, nn.Module):
        return ModuleLayer(layer)
    if isinstance(layer, bool):
        return None
    try:
        return str(layer.__index__())  # integers from Python, NumPy and PyTorch
    except (AttributeError, TypeError):
        return None


def site_of(method: str, backward: str) -> str:
    """Return the site that fits a method under a backward rule.

    LayerNorm undoes any scaling of a token. On the residual stream, the plain gradient is therefore orthogonal to the
    token, and gradient x activation vanishes except for LayerNorm's epsilon. So methods with the plain rule read the
    norm's output. The balanced rule treats the norm's scale as a constant. On the residual stream, gradient x
    activation then adds up to the score (LibraGrad, arXiv 2411.16760), so methods with the balanced rule read there.
    """
    if method in ATTENTION_METHODS:
        return ATTENTION_SITE
    return RESIDUAL if method in CONTRASTS or backward in (BALANCED, BOTH) else NORMED


def sites_of(method: str, sites: Sequence[str]) -> list[str]:
    """Return the sites where `method` has its own map; `[ATTENTION_SITE]` if it reads attention."""
    return [ATTENTION_SITE] if method in ATTENTION_METHODS else list(sites)


# --------------------------------------------------------------------------------------------------- the maps' names


def names_of(maps: Sequence[tuple[Recipe, str]], one_per_layer: bool = False) -> list[str]:
    """Name maps, given as (recipe, layer): by layer if all have one recipe, otherwise by method and more."""
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
