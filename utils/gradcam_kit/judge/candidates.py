"""The candidate recipes for a detector, and their maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.allowed import AUTO
from ..base.threads import hooked
from ..engine.attention import has_attention
from ..engine.attention_methods import ATTENTION_METHODS
from ..engine.backward import BALANCED, PLAIN, can_balance, gates_in
from ..engine.layers import SCALED, SUM
from ..engine.maps import LayerMaps
from ..engine.methods import METHODS
from ..engine.real.contrast import CONTRASTS
from ..engine.recipe import ATTENTION_SITE, BOTH, NORMED, RESIDUAL, Recipe, site_of
from ..engine.towers.channel_axis import OFF, ChannelAxes
from ..engine.towers.tower import Tower

MOST = 16  # candidates per trial
MOST_NAMED = 24  # the same if several layers are named, because they share passes
FINER = 3  # grids of a convolutional network that are tried in addition to the default one
FEWEST_CHANNELS = 8  # a layer with fewer channels holds no features


def shortlist(tower: Tower, maps: MapLayers, named: Recipe, bank: bool = False) -> list[Recipe]:
    """List at most MOST candidates for `tower` that fill in the open fields of `named`; the first is the fallback.

    `bank`: whether there are real tokens to compare with.
    """
    blocks = tower.blocks
    attention, balanced = bool(blocks) and has_attention(tower, blocks), maps.gated or can_balance(tower)
    usual = _of_blocks(blocks, attention, balanced) if blocks else _of_maps(maps)
    if bank:
        usual = _contrasts(blocks, balanced, maps) + usual
    if named.method == AUTO and AUTO in named.layers:
        sites = (named.site, ATTENTION_SITE)
        fitting = [
            one for one in usual if (named.site == AUTO or one.site in sites) and named.backward in (AUTO, one.backward)
        ]
        if fitting:
            return fitting
    if named.method in CONTRASTS and (AUTO in named.layers or not named.layers):  # the bank holds only their tokens
        known = [one for one in _contrasts(blocks, balanced, maps) if one.method == named.method]
        return [one for one in known if named.backward in (AUTO, one.backward)]
    if named.method == AUTO and AUTO not in named.layers:
        return _at_each(named, attention, balanced, bank)
    methods = [named.method] if named.method != AUTO else list(dict.fromkeys(one.method for one in usual))
    # All blocks summed, and three depths.
    depths = (SUM, blocks[-1], blocks[3 * len(blocks) // 4], blocks[len(blocks) // 2]) if blocks else maps.names
    layers = tuple(dict.fromkeys(depths)) if AUTO in named.layers or not named.layers else named.layers
    return _spelled_out(methods, layers, balanced, named)


def _of_blocks(blocks: Sequence[str], attention: bool, balanced: bool) -> list[Recipe]:
    """List candidates for a transformer; maps of all blocks come first, because they need no choice of a layer."""
    last, late, middle = blocks[-1], blocks[(3 * len(blocks)) // 4 - (len(blocks) < 4)], blocks[len(blocks) // 2]
    rules = ([PLAIN, BOTH] if balanced else [PLAIN]) if len(blocks) > 1 else []
    found = [Recipe("hirescam", SCALED, RESIDUAL, rule) for rule in rules]
    if attention:
        found += [Recipe(method, SUM, ATTENTION_SITE, PLAIN) for method in ("attngrad", "gradeclip")]
    if balanced:
        kinds = [("hirescam", SUM), ("gradcam", SUM), ("hirescam", middle), ("hirescam", late), ("gradcam", late)]
        found += [Recipe(method, layer, RESIDUAL, BALANCED) for method, layer in kinds]
    found += [Recipe(method, last, NORMED, PLAIN) for method in ("gradcam", "hirescam", "layercam")]
    if attention:
        found += [Recipe(method, last, ATTENTION_SITE, PLAIN) for method in ("legrad", "gradeclip")]
    if not balanced:
        found += [Recipe("hirescam", block, NORMED, PLAIN) for block in (late, middle)]
        found += [Recipe("hirescam", middle, RESIDUAL, PLAIN), Recipe("gradcam", middle, NORMED, PLAIN)]
    known = {*METHODS, *ATTENTION_METHODS}
    return list(dict.fromkeys(one for one in found if one.method in known))


def _at_each(named: Recipe, attention: bool, balanced: bool, bank: bool) -> list[Recipe]:
    """List candidates at each named layer: methods that are valid at a single block, as many as fit."""
    kinds = [(method, RESIDUAL, PLAIN) for method in CONTRASTS] if bank else []
    if balanced:
        kinds += [(method, RESIDUAL, BALANCED) for method in ("hirescam", "gradcam")]
    kinds += [("hirescam", RESIDUAL, PLAIN)]
    if attention:
        kinds += [(method, ATTENTION_SITE, PLAIN) for method in ("gradeclip", "legrad")]
    kinds += [(method, NORMED, PLAIN) for method in ("hirescam", "gradcam")]
    fitting = [
        (method, site, rule)
        for method, site, rule in kinds
        if named.backward in (AUTO, rule) and (named.site in (AUTO, site) or site == ATTENTION_SITE)
    ]
    room = max(1, MOST_NAMED // len(named.layers))
    return [Recipe(method, layer, site, rule) for method, site, rule in fitting[:room] for layer in named.layers]


def _contrasts(blocks: Sequence[str], balanced: bool, maps: MapLayers) -> list[Recipe]:
    """List contrast maps: of every third block, or of each grid of a convolutional network."""
    layers = [SCALED] if blocks else maps.names
    rules = [BOTH, PLAIN, BALANCED] if blocks and balanced else [PLAIN]
    return [Recipe(method, layer, backward=rule) for method in CONTRASTS for rule in rules for layer in layers]


def _of_maps(maps: MapLayers) -> list[Recipe]:
    """List candidates for a convolutional network: its default layer and finer grids, with constant gates if any."""
    methods = ("gradcam", "hirescam", "layercam", "gradcam++")
    if not maps.gated:
        return [Recipe(method, layer, NORMED, PLAIN) for layer in maps.names for method in methods]
    found = [Recipe(method, layer, NORMED, PLAIN) for layer in maps.names[:1] for method in methods]
    found += [Recipe(method, layer, NORMED, BALANCED) for layer in maps.names[1:] for method in methods[:3]]
    return [*found, *(Recipe("hirescam", layer, NORMED, PLAIN) for layer in maps.names[1:])]


def _spelled_out(methods: Sequence[str], layers: Sequence[str], balanced: bool, named: Recipe) -> list[Recipe]:
    """List every method with every backward rule, at as many of `layers` as fit."""
    rules = [named.backward] if named.backward != AUTO else ([BALANCED, PLAIN] if balanced else [PLAIN])
    kinds = [(method, rule) for rule in rules for method in methods][:MOST]
    room = max(1, MOST // len(kinds))
    used = layers if len(layers) <= room else [layers[(2 * k + 1) * len(layers) // (2 * room)] for k in range(room)]
    return [
        Recipe(method, layer, site_of(method, rule) if named.site == AUTO else named.site, rule)
        for method, rule in kinds
        for layer in used
    ]


class MapLayers(NamedTuple):
    """The layers of a network without blocks: its default layer, then finer grids, the coarsest first.

    `gated`: squeeze-and-excitation weighs its channels.
    """

    names: list[str]
    gated: bool = False


NO_MAPS = MapLayers([])


def map_layers(tower: nn.Module, default: str, run: Callable[[], object]) -> MapLayers:
    """Find a convolutional network's layers: `default`, and the last module on each of the next FINER finer grids.

    Modules with children are preferred, because they are blocks or stages. `run` runs the whole model once.
    """
    sizes: dict[str, int] = {}
    repeated: set[str] = set()
    axes = ChannelAxes()

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        on_image = isinstance(output, Tensor) and output.ndim == 4 and axes.axis_of(output, *inputs[:1]) != OFF
        if on_image and output.shape[1] >= FEWEST_CHANNELS:
            repeated.update([name] if name in sizes else [])
            sizes[name] = output.shape[2] * output.shape[3]

    parts = [(name, module) for name, module in tower.named_modules() if name]
    with hooked(parts, note), torch.no_grad(), axes:
        gates = gates_in(run)
    finer: dict[int, str] = {}
    for name, size in sizes.items():
        usable = size > sizes.get(default, size) and name not in repeated and not name.startswith(f"{default}.")
        made_of_others = next(tower.get_submodule(name).children(), None) is not None
        before = size in finer and next(tower.get_submodule(finer[size]).children(), None) is not None
        if usable and (made_of_others or not before):
            finer[size] = name
    return MapLayers([default, *(finer[size] for size in sorted(finer)[:FINER])], gates > 0)


def captures(candidates: Iterable[Recipe]) -> int:
    """Count the backward passes of `candidate_maps`, at most two per forward pass."""
    rules = [{one.backward for one in some} for some in _by_capture(candidates) if some]
    return sum(1 + (len(of) > 1 or BOTH in of) for of in rules)


def _by_capture(candidates: Iterable[Recipe]) -> tuple[list[Recipe], list[Recipe]]:
    """Split the candidates into those that share one capture, and those that need their own."""
    every = list(candidates)
    return [one for one in every if not one.needs_own_pass], [one for one in every if one.needs_own_pass]


def candidate_maps(capture: Callable[[list[Recipe]], Any], candidates: Sequence[Recipe]) -> dict[Recipe, LayerMaps]:
    """Compute the maps of all candidates with as few calls of `capture` as possible (`explaining.capture.Capture`)."""
    found = {}
    for group in filter(None, _by_capture(candidates)):
        kinds: dict[Recipe, list[Recipe]] = {}  # recipes that differ only in their layer
        for one in group:
            kinds.setdefault(one.at(""), []).append(one)
        wanted = [
            Recipe(kind.method, [one.layer for one in some], kind.site, kind.backward) for kind, some in kinds.items()
        ]
        captured = capture(wanted)
        for recipe, some in zip(wanted, kinds.values(), strict=True):
            maps = captured.maps(recipe)
            found.update({one: maps[one.layer] for one in some})
    return {candidate: found[candidate] for candidate in candidates}
