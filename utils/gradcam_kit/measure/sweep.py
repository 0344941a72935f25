"""Maps of many methods, layers, sites and backward rules for the same images: one pass a batch for each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..base.allowed import SITES
from ..engine.attention import has_attention
from ..engine.attention_methods import ATTENTION_METHODS
from ..engine.backward import BALANCED, PLAIN, can_balance
from ..engine.layers import FUSED, SUM, named_layers, site_of_layer, summed_blocks
from ..engine.maps import Canvas, normalise
from ..engine.methods import METHODS
from ..engine.recipe import Recipe, site_of, sites_of
from ..engine.targets import Target
from ..engine.towers.tower import Tower
from ..judge.localisation import Localisation, localise
from ..model.detector import LoadedDetector

CHUNK = 16  # maps localised at a time: what the processor's cache holds


class SweepPlan(NamedTuple):
    """Which maps to make: every method at every site (of its own) of every layer, by every backward rule.

    With both rules the balanced one is for the sites alone at which it makes a method's products add up.
    """

    methods: list[str]
    sites: list[str]
    layers: list[str]
    backwards: Sequence[str] = (PLAIN,)

    def specs(self, backward: str = "") -> list[Recipe]:
        """Every map of the plan; with `backward` those of that rule."""
        return [
            Recipe(method, layer, site, rule)
            for rule in ([backward] if backward else self.backwards)
            for method in self.methods
            for site in sites_of(method, self.sites)
            if self._worth(method, site, rule)
            for layer in self.layers
        ]

    def _worth(self, method: str, site: str, rule: str) -> bool:
        if rule == PLAIN or len(self.backwards) == 1:
            return True
        return method != "rollout" and site == site_of(method, rule)  # rollout has no gradient


def full_plan(detector: LoadedDetector, layers: Sequence[str]) -> SweepPlan:
    """All methods at all sites of `layers`, with `fused` beside them where there are two or more.

    Where `sum` is among them, methods whose maps do not add are left out. By both backward rules, where the tower can
    be balanced.
    """
    tower: Tower = detector.model.tower
    named, summed = named_layers(layers), summed_blocks(tower, layers)
    read = [*named, *summed]
    points = [[site_of_layer(tower, layer, site) for layer in read] for site in SITES]
    sites = list(SITES) if any(a.module is not b.module for a, b in zip(*points, strict=True)) else [SITES[0]]
    attention = [name for name, method in ATTENTION_METHODS.items() if not summed or method.sum_of is not None]
    methods = [*METHODS, *(attention if has_attention(tower, read) else ())]
    every = [*named, *([FUSED] if len(named) > 1 else []), *([SUM] if summed else [])]
    return SweepPlan(methods, sites, every, (PLAIN, BALANCED) if can_balance(tower) else (PLAIN,))


def make_maps(
    detector: LoadedDetector, plan: SweepPlan, pixels: Tensor, target: Target, batch_size: int, title: str = ""
) -> dict[Recipe, Tensor]:
    """The plan's raw maps of every image.

    Args:
        pixels: (N, 3, R, R) uint8.
        title: of the progress bar; without one there is none.

    Returns:
        (N, h, w) float32 ≥ 0 for each spec of the plan, on the CPU.

    Raises:
        InputError, NonFiniteMapError: as `GradCAMMixin.explain`.
    """
    found: dict[Recipe, list[Tensor]] = {spec: [] for spec in plan.specs()}
    with tqdm(total=len(pixels), unit="frame", desc=title, disable=not title) as bar:
        for part in pixels.split(batch_size):
            for backward in plan.backwards:
                for spec, raw in _batch_maps(detector, plan, backward, part, target).items():
                    found[spec].append(raw)
            bar.update(len(part))
    return {spec: torch.cat(parts) for spec, parts in found.items()}


def _batch_maps(
    detector: LoadedDetector, plan: SweepPlan, backward: str, pixels: Tensor, target: Target
) -> dict[Recipe, Tensor]:
    side = detector.settings.resolution
    kinds = dict.fromkeys((spec.method, spec.site) for spec in plan.specs(backward))
    recipes = [Recipe(method, plan.layers, site, backward) for method, site in kinds]
    size = detector.model.patch_grid(side, side) or (side, side)  # `resized` brings them to image size
    with detector.autocast():
        captured = detector.as_subject().capture({"image": detector.normalised(pixels)}, recipes, target, size)
    return {
        recipe.at(layer): torch.where(maps.empty[:, None, None], torch.zeros_like(maps.raw), maps.raw).float().cpu()
        for recipe in recipes
        for layer, maps in captured.maps(recipe).items()
    }


def maps_of(
    detector: LoadedDetector,
    specs: Sequence[Recipe],
    fused_layers: Sequence[str],
    pixels: Tensor,
    target: Target,
    batch_size: int,
) -> dict[Recipe, Tensor]:
    """As `make_maps`, of some specs alone; `fused_layers` are those that `fused` is the mean of."""
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    if FUSED in layers:
        layers = list(dict.fromkeys([*layers, *fused_layers]))
    maps: dict[Recipe, Tensor] = {}
    for backward in dict.fromkeys(spec.backward for spec in specs):
        of_rule = [spec for spec in specs if spec.backward == backward]
        methods = list(dict.fromkeys(spec.method for spec in of_rule))
        sites = [site for site in SITES if any(spec.site == site for spec in of_rule)]
        plan = SweepPlan(methods, sites, layers, (backward,))
        maps.update(make_maps(detector, plan, pixels, target, batch_size))
    return {spec: maps[spec] for spec in specs}


def resized(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Raw maps (N, h, w) → (N, R, R) in [0, 1] on the detector's device, as they are drawn."""
    side = detector.settings.resolution
    return normalise(raw.to(detector.device), Canvas.of((side, side), detector.model.token_grid(side, side)))


def localise_maps(
    detector: LoadedDetector, maps: Mapping[Recipe, Tensor], masks: Tensor, masked: Tensor
) -> dict[Recipe, Localisation]:
    """How well each kind of map finds the masks, of the M ≥ 1 images that are `masked`.

    Args:
        maps: raw, (N, h, w) each.
        masks: (N, R, R) bool.
        masked: (N,) bool.
    """
    parts = masked.nonzero().flatten().split(CHUNK)
    found = {}
    for spec, raw in tqdm(maps.items(), unit="map", desc="localisation"):
        scores = [localise(resized(detector, raw[part]), masks[part].to(detector.device)) for part in parts]
        found[spec] = Localisation(*map(torch.cat, zip(*scores, strict=True)))
    return found
