"""Maps of many recipes for the same images, one pass a batch for each backward rule; and what a sweep tries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..base.allowed import SITES
from ..engine.attention import has_attention
from ..engine.attention_methods import ATTENTION_METHODS
from ..engine.backward import can_balance
from ..engine.layers import FUSED, SUM, named_layers, site_of_layer, summed_blocks
from ..engine.maps import Canvas, normalise
from ..engine.methods import METHODS
from ..engine.recipe import BALANCED, PLAIN, Recipe, site_of, sites_of
from ..engine.targets import Target
from ..engine.towers.tower import Tower
from ..judge.localisation import Localisation, localise
from ..model.detector import LoadedDetector

CHUNK = 16  # maps localised at a time: what the processor's cache holds


def swept_recipes(detector: LoadedDetector, layers: Sequence[str], backwards: Sequence[str] = ()) -> list[Recipe]:
    """All methods at all sites of `layers`, with `fused` beside them where there are two or more.

    Where `sum` is among them, methods whose maps do not add are left out. By both backward rules where the tower can be
    balanced, unless `backwards` names them; of both, the balanced one is only for the sites at which it makes a
    method's products add up.
    """
    tower: Tower = detector.model.tower
    named, summed = named_layers(layers), summed_blocks(tower, layers)
    read = [*named, *summed]
    points = [[site_of_layer(tower, layer, site) for layer in read] for site in SITES]
    sites = SITES if any(a.module is not b.module for a, b in zip(*points, strict=True)) else SITES[:1]
    attention = [name for name, method in ATTENTION_METHODS.items() if not summed or method.sum_of is not None]
    methods = [*METHODS, *(attention if has_attention(tower, read) else ())]
    every = [*named, *([FUSED] if len(named) > 1 else []), *([SUM] if summed else [])]
    rules = backwards or ((PLAIN, BALANCED) if can_balance(tower) else (PLAIN,))

    def is_worth(method: str, site: str, rule: str) -> bool:
        adds_up = method != "rollout" and site == site_of(method, rule)  # rollout has no gradient
        return rule == PLAIN or len(rules) == 1 or adds_up

    return [
        Recipe(method, layer, site, rule)
        for rule in rules
        for method in methods
        for site in sites_of(method, sites)
        if is_worth(method, site, rule)
        for layer in every
    ]


def make_maps(
    detector: LoadedDetector,
    recipes: Sequence[Recipe],
    pixels: Tensor,
    target: Target,
    batch_size: int,
    fused_of: Sequence[str] = (),
    title: str = "",
) -> dict[Recipe, Tensor]:
    """The raw maps of every image.

    Args:
        recipes: of one layer each.
        pixels: (N, 3, R, R) uint8.
        fused_of: the layers that `fused` is the mean of, where they are not all in `recipes`.
        title: of the progress bar; without one there is none.

    Returns:
        (N, h, w) float32 ≥ 0 for each recipe, on the CPU.

    Raises:
        InputError, NonFiniteMapError: as `GradCAMMixin.explain`.
    """
    layers = list(dict.fromkeys(recipe.layer for recipe in recipes))
    if FUSED in layers:
        layers = list(dict.fromkeys([*layers, *fused_of]))
    parts: dict[Recipe, list[Tensor]] = {recipe: [] for recipe in recipes}
    with tqdm(total=len(pixels), unit="frame", desc=title, disable=not title) as bar:
        for part in pixels.split(batch_size):
            for backward in dict.fromkeys(recipe.backward for recipe in recipes):
                of_rule = [recipe for recipe in recipes if recipe.backward == backward]
                for recipe, raw in _batch_maps(detector, of_rule, layers, part, target):
                    if recipe in parts:
                        parts[recipe].append(raw)
            bar.update(len(part))
    return {recipe: torch.cat(found) for recipe, found in parts.items()}


def _batch_maps(
    detector: LoadedDetector, recipes: Sequence[Recipe], layers: list[str], pixels: Tensor, target: Target
) -> Iterator[tuple[Recipe, Tensor]]:
    """The maps at all `layers`, by the methods and sites of some recipes that share a backward rule."""
    side, backward = detector.settings.resolution, recipes[0].backward
    kinds = dict.fromkeys((recipe.method, recipe.site) for recipe in recipes)
    asked = [Recipe(method, layers, site, backward) for method, site in kinds]
    size = detector.model.patch_grid(side, side) or (side, side)  # `resized` brings them to image size
    with detector.autocast():
        captured = detector.as_subject().capture({"image": detector.normalised(pixels)}, asked, target, size)
    for recipe in asked:
        for layer, maps in captured.maps(recipe).items():
            raw = torch.where(maps.empty[:, None, None], torch.zeros_like(maps.raw), maps.raw)
            yield recipe.at(layer), raw.float().cpu()


def resized(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Raw maps (N, h, w) → (N, R, R) in [0, 1] on the detector's device, as they are drawn."""
    side = detector.settings.resolution
    return normalise(raw.to(detector.device), Canvas.of((side, side), detector.model.token_grid(side, side)))


def localise_maps(
    detector: LoadedDetector, maps: Mapping[Recipe, Tensor], masks: Tensor, masked: Tensor
) -> dict[Recipe, Localisation]:
    """How well each kind of map (N, h, w), raw, finds the masks (N, R, R) bool of the M ≥ 1 images `masked` (N,)."""
    parts = masked.nonzero().flatten().split(CHUNK)
    found = {}
    for recipe, raw in tqdm(maps.items(), unit="map", desc="localisation"):
        scores = [localise(resized(detector, raw[part]), masks[part].to(detector.device)) for part in parts]
        found[recipe] = Localisation(*map(torch.cat, zip(*scores, strict=True)))
    return found
