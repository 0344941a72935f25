"""Which map: a method, the layers it is made of, the site where it reads a block, and the rule of the backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..base.allowed import AUTO, BACKWARDS, SITES
from ..base.errors import InputError
from .attention_methods import ATTENTION_METHODS
from .real.contrast import CONTRASTS

PLAIN, BALANCED, BOTH = BACKWARDS
NORMED, RESIDUAL = SITES
ATTENTION_SITE = "attention"  # of methods that read a block's attention, whatever site is asked for


class ModuleLayer(str):
    """A layer given as the module itself, until the tower is known in which it has a name."""

    module: nn.Module

    def __new__(cls, module: nn.Module) -> ModuleLayer:
        self = super().__new__(cls, f"<{type(module).__name__} {id(module):x}>")
        self.module = module
        return self


@dataclass(frozen=True, slots=True, init=False)
class Recipe:
    """How one map, or the maps of several layers, are made. Hashable; equal recipes make equal maps.

    Args:
        method: a name of `METHODS` or `ATTENTION_METHODS`, "transplant", or "auto".
        layers: one layer or several: names of modules, numbers of blocks (-1: the last), or modules; "fused" for the
            mean of the other layers' normalised maps, "sum" for the sum of the raw maps of all blocks. None: the last
            block, or the last grid of a convolutional network; of a contrast "scaled", the mean of every third
            block's map, each scaled to unit deviation, where there are blocks.
        site: "layer_norm1" (what a block reads, normalised) or "residual" (the stream itself); None: the first. A
            method that reads attention has no other site than "attention", and a contrast none but "residual".
        backward: "plain", "balanced", or "both": the maps of the two, each scaled to unit deviation, added; None: the
            first.

    A field that is "auto" is left to a trial (`choose`).

    Raises:
        InputError: layers that are none of the above.
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
        """The recipe that a caller means: one already, a method's name, or a mapping of the four fields."""
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
        """Everything that is not given is left to a trial."""
        return cls(AUTO, AUTO if layers is None else layers, site or AUTO, backward or AUTO)

    @classmethod
    def control(cls, name: str) -> Recipe:
        """A baseline map that ignores the detector."""
        return cls(name, (), "")

    @property
    def is_control(self) -> bool:
        """Whether this is a baseline map that ignores the detector."""
        return not self.site

    @property
    def needs_own_pass(self) -> bool:
        """Whether no recipe of another backward rule can share its pass: attention by the balanced rule."""
        return self.method in ATTENTION_METHODS and self.backward == BALANCED

    @property
    def is_open(self) -> bool:
        """Whether the method or the layer is left to a trial."""
        return AUTO in (self.method, *self.layers)

    def closed(self) -> Recipe:
        """The same with nothing left open: Grad-CAM, the default layer, the first site and backward rule."""
        method, site, backward = (None if name == AUTO else name for name in (self.method, self.site, self.backward))
        return Recipe(method, None if AUTO in self.layers else self.layers, site, backward)

    def at(self, layer: str) -> Recipe:
        """The same at that one layer."""
        return Recipe(self.method, layer, self.site, self.backward)

    def using(self, chosen: Recipe) -> Recipe:
        """The chosen kind of map, at all layers of this recipe where they are named."""
        named = bool(self.layers) and AUTO not in self.layers
        return replace(chosen, layers=self.layers) if named else chosen

    @property
    def layer(self) -> str:
        """The one layer of a recipe for a single map; "" where none is named."""
        return self.layers[0] if self.layers else ""

    @property
    def kind(self) -> str:
        """Method, site and backward rule: values of maps of different kinds cannot be compared."""
        return f"{self.method} {self.site} {self.backward}"

    @property
    def where(self) -> str:
        """The site, and the backward rule where it is not the plain one."""
        return where(self.site, self.backward)

    @property
    def title(self) -> str:
        """A heading in tables and figures."""
        return f"{self.method} at {self.layer}, {self.where}"

    def facts(self) -> dict[str, str]:
        """The fields by name, as files hold them, of a recipe for a single map."""
        return {"method": self.method, "layer": self.layer, "site": self.site, "backward": self.backward}

    def __str__(self) -> str:
        return f"{self.method} at {self.layer} ({self.site}, {self.backward})"


def where(site: str, backward: str) -> str:
    """A site, and the backward rule where it is not the plain one."""
    return site if backward == PLAIN else f"{site}, {backward}"


def layer_names(layers: Any) -> tuple[str, ...]:
    """Layers in any spelling → names: None, a name, a number, a module, or several of these. Raises InputError."""
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
    """A name, a number of any kind, or a module; None for anything else."""
    if isinstance(layer, str):
        return layer
    if isinstance(layer, nn.Module):
        return ModuleLayer(layer)
    if isinstance(layer, bool):
        return None
    try:
        return str(layer.__index__())  # Python's, NumPy's and PyTorch's whole numbers
    except (AttributeError, TypeError):
        return None


def site_of(method: str, backward: str) -> str:
    """The site at which a method's formula holds under a backward rule.

    LayerNorm undoes any scaling of a token, so the plain gradient on the residual stream is at right angles to it, and
    gradient x activation vanishes there but for LayerNorm's epsilon: plain methods read behind the norm. The balanced
    rule takes the norm's scale for a constant; the products then add up to the score on the residual stream (LibraGrad,
    arXiv 2411.16760), and methods that multiply the two read there.
    """
    if method in ATTENTION_METHODS:
        return ATTENTION_SITE
    return RESIDUAL if method in CONTRASTS or backward in (BALANCED, BOTH) else NORMED


def sites_of(method: str, sites: Sequence[str]) -> list[str]:
    """Those of `sites` at which `method` has a map of its own; `[ATTENTION_SITE]` where it reads attention."""
    return [ATTENTION_SITE] if method in ATTENTION_METHODS else list(sites)
