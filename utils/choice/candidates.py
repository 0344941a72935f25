"""The maps worth trying on a detector: a short list of method, layer, site and backward rule."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable, Iterable, NamedTuple, Protocol, Sequence

import torch
from torch import Tensor, nn

from utils.allowed import SITES
from utils.cam.attention import ATTENTION_METHODS, has_attention
from utils.cam.backward import BALANCED, PLAIN, attention_of, gates_in
from utils.cam.layers import SUM, block_names
from utils.cam.maps import LayerMaps
from utils.cam.methods import ATTENTION_SITE, METHODS
from utils.errors import InputError

MOST = 16  # candidates of one trial
FINER = 3  # grids that are tried beside the default one of a convolutional network
FEWEST_CHANNELS = 8  # of a layer that is tried: fewer are no features
RESIDUAL, NORMED = "residual", "layer_norm1"


class Candidate(NamedTuple):
    """One kind of map. `site` is ATTENTION_SITE for a method that reads attention."""

    method: str
    layer: str
    site: str
    backward: str

    def __str__(self) -> str:
        return f"{self.method} at {self.layer} ({self.site}, {self.backward})"


class Named(NamedTuple):
    """What the user has named of a map; None: to be chosen."""

    method: str | None = None
    layers: tuple[str, ...] | None = None
    site: str | None = None
    backward: str | None = None


def site_of(method: str, backward: str) -> str:
    """The site at which a method's formula holds under a backward rule.

    LayerNorm undoes any scaling of a token, so the plain gradient on the residual stream is at right angles to it, and
    gradient x activation vanishes there but for LayerNorm's epsilon: plain methods read behind the norm. The balanced
    rule takes the norm's scale for a constant; the products then add up to the score on the residual stream (LibraGrad,
    arXiv 2411.16760), and methods that multiply the two read there.
    """
    if method in ATTENTION_METHODS:
        return ATTENTION_SITE
    return RESIDUAL if backward == BALANCED else NORMED


def can_balance(tower: nn.Module) -> bool:
    """Whether `tower` can be differentiated by the balanced rule."""
    try:
        return bool(attention_of(tower))
    except InputError:
        return False


def shortlist(tower: nn.Module, maps: MapLayers, named: Named) -> list[Candidate]:
    """At most MOST candidates for `tower`, what is named kept to; the first is the one to fall back on.

    Args:
        maps: the layers of a network without blocks.
        named: what is left open is filled in.
    """
    blocks = block_names(tower)
    attention, balanced = bool(blocks) and has_attention(tower, blocks), maps.gated or can_balance(tower)
    usual = _of_blocks(blocks, attention, balanced) if blocks else _of_maps(maps)
    if named.method is None and named.layers is None:
        fitting = [one for one in usual if _fits(one, named)]
        if fitting:
            return fitting
    methods = [named.method] if named.method else list(dict.fromkeys(one.method for one in usual))
    layers = named.layers or tuple(_depths(blocks)) or tuple(maps.names)
    return _spelled_out(methods, layers, balanced, named)


def _of_blocks(blocks: Sequence[str], attention: bool, balanced: bool) -> list[Candidate]:
    """Of a transformer: sums over all blocks first, since they have no layer to get wrong."""
    last, late, middle = blocks[-1], blocks[(3 * len(blocks)) // 4 - (len(blocks) < 4)], blocks[len(blocks) // 2]
    found = []
    if balanced:
        found += [
            Candidate("hirescam", SUM, RESIDUAL, BALANCED),
            Candidate("gradcam", SUM, RESIDUAL, BALANCED),
            *(Candidate("hirescam", block, RESIDUAL, BALANCED) for block in dict.fromkeys((middle, late))),
            Candidate("gradcam", late, RESIDUAL, BALANCED),
        ]
    found += [Candidate(method, last, NORMED, PLAIN) for method in ("gradcam", "hirescam", "layercam")]
    if attention:
        found += [
            Candidate("legrad", last, ATTENTION_SITE, PLAIN),
            Candidate("gradeclip", last, ATTENTION_SITE, PLAIN),
            Candidate("gradeclip", SUM, ATTENTION_SITE, PLAIN),
            Candidate("attngrad", SUM, ATTENTION_SITE, PLAIN),
        ]
    if not balanced:
        found += [Candidate("hirescam", block, NORMED, PLAIN) for block in dict.fromkeys((late, middle))]
        found += [Candidate("hirescam", middle, RESIDUAL, PLAIN), Candidate("gradcam", middle, NORMED, PLAIN)]
    known = {*METHODS, *ATTENTION_METHODS}
    return list(dict.fromkeys(one for one in found if one.method in known))


def _of_maps(maps: MapLayers) -> list[Candidate]:
    """Of a convolutional network: its default layer, and finer maps, with constant gates where it has gates."""
    plain = ("gradcam", "hirescam", "layercam", "gradcam++")
    default, finer = maps.names[:1], maps.names[1:]
    found = [Candidate(method, layer, NORMED, PLAIN) for layer in default for method in plain]
    if maps.gated:
        found += [Candidate(method, layer, NORMED, BALANCED) for layer in finer for method in plain[:3]]
        found += [Candidate("hirescam", layer, NORMED, PLAIN) for layer in finer]
    else:
        found += [Candidate(method, layer, NORMED, PLAIN) for layer in finer for method in plain]
    return found


def _fits(one: Candidate, named: Named) -> bool:
    site = named.site is None or one.site in (named.site, ATTENTION_SITE)
    return site and named.backward in (None, one.backward)


def _depths(blocks: Sequence[str]) -> list[str]:
    """Layers where only the method is named: all blocks summed, and three depths."""
    if not blocks:
        return []
    return list(dict.fromkeys((SUM, blocks[-1], blocks[(3 * len(blocks)) // 4], blocks[len(blocks) // 2])))


def _spelled_out(methods: Sequence[str], layers: Sequence[str], balanced: bool, named: Named) -> list[Candidate]:
    """Every method by every backward rule at its site, at as many of `layers` as the list has room for."""
    rules = [named.backward] if named.backward else ([BALANCED, PLAIN] if balanced else [PLAIN])
    kinds = []
    for rule in rules:
        for method in methods:
            site = ATTENTION_SITE if method in ATTENTION_METHODS else named.site or site_of(method, rule)
            kinds.append((method, site, rule))
    kinds = kinds[:MOST]
    room = max(1, MOST // len(kinds))
    used = layers if len(layers) <= room else [layers[(2 * k + 1) * len(layers) // (2 * room)] for k in range(room)]
    return [Candidate(method, layer, site, rule) for method, site, rule in kinds for layer in used]


class MapLayers(NamedTuple):
    """Where a network without blocks may be read: its default layer, then finer maps, the coarsest of them first.

    `gated`: squeeze-and-excitation weighs its channels.
    """

    names: list[str]
    gated: bool = False


NO_MAPS = MapLayers([])


def map_layers(tower: nn.Module, default: str, run: Callable[[], object]) -> MapLayers:
    """`default` of a convolutional network, and the last module on each of the next FINER finer grids.

    Modules made of others are preferred: the blocks and stages that a network is built of. `run` is a forward pass of
    the whole model.
    """
    sizes: dict[str, int] = {}
    repeated: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] >= FEWEST_CHANNELS:
                repeated.update([name] if name in sizes else [])
                sizes[name] = output.shape[2] * output.shape[3]

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in tower.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        gates = gates_in(run)
    finer: dict[int, str] = {}
    for name, size in sizes.items():
        usable = size > sizes.get(default, size) and name not in repeated and not name.startswith(f"{default}.")
        made_of_others = next(tower.get_submodule(name).children(), None) is not None
        before = size in finer and next(tower.get_submodule(finer[size]).children(), None) is not None
        if usable and (made_of_others or not before):
            finer[size] = name
    return MapLayers([default, *(finer[size] for size in sorted(finer)[:FINER])], gates > 0)


# ---------------------------------------------------------------------------------------------------------- their maps


class HasMaps(Protocol):
    """What a capture gives: `utils.gradcam.Capture`."""

    def maps(self, method: str, site: str, pp_epsilon: float = ...) -> dict[str, LayerMaps]: ...


def captures(candidates: Iterable[Candidate]) -> int:
    """Forward and backward passes that `candidate_maps` makes."""
    return len({(one.site, one.backward) for one in candidates})


def candidate_maps(capture: Callable[..., Any], candidates: Sequence[Candidate]) -> dict[Candidate, LayerMaps]:
    """The maps of all candidates, from one pass for each backward rule and site.

    `capture` takes `layers`, `methods`, `sites`, `backward` by keyword and returns `HasMaps`; its errors are passed on.
    """
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.site, candidate.backward), []).append(candidate)
    found = {}
    for (site, backward), group in groups.items():
        layers = list(dict.fromkeys(one.layer for one in group))
        methods = list(dict.fromkeys(one.method for one in group))
        sites = [site if site in SITES else SITES[0]]
        captured: HasMaps = capture(layers=layers, methods=methods, sites=sites, backward=backward)
        maps = {method: captured.maps(method, site) for method in methods}
        found.update({one: maps[one.method][one.layer] for one in group})
    return {candidate: found[candidate] for candidate in candidates}
