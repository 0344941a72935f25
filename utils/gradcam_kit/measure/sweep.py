"""Maps of many recipes for the same images: the recipes of a sweep, localisation, and randomised weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..base.allowed import CLIP_METHODS, SITES
from ..engine.attention import has_attention
from ..engine.attention_methods import ATTENTION_METHODS
from ..engine.backward import can_balance
from ..engine.heads import Target
from ..engine.layers import FUSED, SCALED, SUM, named_layers, site_of_layer, summed_blocks
from ..engine.maps import Canvas, normalise
from ..engine.methods import METHODS
from ..engine.recipe import BALANCED, PLAIN, Recipe, site_of, sites_of
from ..engine.towers.tower import Tower
from ..judge.localisation import Localisation, localise
from ..model.detector import LoadedDetector
from .clips import make_clip_maps, measured_tower, resized_clips

CHUNK = 16  # maps localised at a time, so that they fit the processor's cache
FAILS_FROM = 0.3  # a method fails with this rank correlation after all weights are random


def swept_recipes(detector: LoadedDetector, layers: Sequence[str], backwards: Sequence[str] = ()) -> list[Recipe]:
    """List all methods at all sites of `layers`, and of `fused` if there are two or more layers.

    For `sum` and `scaled`, methods whose maps cannot be added are skipped. Both backward rules are tried if the tower
    can be balanced, unless `backwards` names them. With both, the balanced rule is used only at sites where it makes a
    method's products add up (rollout has no gradient).
    """
    tower, of_clips = measured_tower(detector), detector.settings.clip_size is not None
    named, sums = named_layers(layers), [layer for layer in (SUM, SCALED) if layer in layers]
    summed = [block for layer in sums for block in summed_blocks(tower, layer)]
    read = [*named, *summed]
    points = [[site_of_layer(tower, layer, site) for layer in read] for site in SITES]
    sites = SITES if any(a.module is not b.module for a, b in zip(*points, strict=True)) else SITES[:1]
    attention = [name for name, method in ATTENTION_METHODS.items() if not summed or method.sum_of is not None]
    methods = [*METHODS, *(CLIP_METHODS if of_clips else attention if has_attention(tower, read) else ())]
    every = [*named, *([FUSED] if len(named) > 1 and not of_clips else []), *sums]
    rules = backwards or ((PLAIN, BALANCED) if can_balance(tower) else (PLAIN,))
    return [
        Recipe(method, layer, site, rule)
        for rule in rules
        for method in methods
        for site in sites_of(method, sites)
        if rule == PLAIN or len(rules) == 1 or (method != "rollout" and site == site_of(method, rule))
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
    """Make the raw maps (N, h, w) float32 ≥ 0 on the CPU of pictures (N, 3, H, R) uint8, by recipes of one layer each.

    `fused_of`: the layers of `fused`, if they are not all in `recipes`. `title`: of the progress bar; "" for none.
    Raises InputError and NonFiniteMapError as `GradCAMMixin.explain`.
    """
    if detector.settings.clip_size is not None:
        return make_clip_maps(detector, recipes, pixels, target, batch_size, title)
    layers = list(dict.fromkeys(recipe.layer for recipe in recipes))
    if FUSED in layers:
        layers = list(dict.fromkeys([*layers, *fused_of]))
    side = detector.settings.resolution
    size = detector.model.patch_grid(side, side) or (side, side)  # `resized` brings them to image size
    by_rule: dict[str, dict[Recipe, None]] = {}  # by backward rule: every method and site at all layers
    for one in recipes:
        by_rule.setdefault(one.backward, {})[Recipe(one.method, layers, one.site, one.backward)] = None
    parts: dict[Recipe, list[Tensor]] = {recipe: [] for recipe in recipes}
    with tqdm(total=len(pixels), unit="frame", desc=title, disable=not title) as bar:
        for part in pixels.split(batch_size):
            for asked in map(list, by_rule.values()):
                with detector.autocast():
                    captured = detector.as_subject().capture({"image": detector.normalise(part)}, asked, target, size)
                for recipe in asked:
                    for layer, maps in captured.maps(recipe).items():
                        if recipe.at(layer) in parts:
                            raw = torch.where(maps.empty[:, None, None], torch.zeros_like(maps.raw), maps.raw)
                            parts[recipe.at(layer)].append(raw.float().cpu())
            bar.update(len(part))
    return {recipe: torch.cat(found) for recipe, found in parts.items()}


def resized(detector: LoadedDetector, raw: Tensor) -> Tensor:
    """Resize raw maps (N, h, w) to (N, H, R) in [0, 1] on the detector's device, as they are drawn."""
    if detector.settings.clip_size is not None:
        return resized_clips(detector, raw)
    side = detector.settings.resolution
    return normalise(raw.to(detector.device), Canvas.of((side, side), detector.model.token_grid(side, side)))


def localise_maps(
    detector: LoadedDetector, maps: Mapping[Recipe, Tensor], masks: Tensor, masked: Tensor
) -> dict[Recipe, Localisation]:
    """Measure how well raw maps (N, h, w) find the masks (N, H, R) bool of the pictures `masked` (N,), at least one."""
    parts = masked.nonzero().flatten().split(CHUNK)
    found = {}
    for recipe, raw in tqdm(maps.items(), unit="map", desc="localisation"):
        scores = [localise(resized(detector, raw[part]), masks[part].to(detector.device)) for part in parts]
        found[recipe] = Localisation(*map(torch.cat, zip(*scores, strict=True)))
    return found


class Randomised(NamedTuple):
    """Mean rank correlation with the original map after each step of the cascade, by recipe."""

    steps: list[str]
    correlation: dict[Recipe, list[float]]  # NaN if every map is constant


def randomisation(
    detector: LoadedDetector, recipes: Sequence[Recipe], make: Callable[[], Mapping[Recipe, Tensor]], seed: int
) -> Randomised:
    """Randomise the weights step by step, and compare the maps of `recipes`, from `make`, with the original ones.

    A map that does not change although the weights are noise explains nothing (Adebayo et al. 2018). The detector is
    restored afterwards.
    """
    original = make()
    found = Randomised([], {recipe: [] for recipe in recipes})
    with weights_put_back(detector.model):
        for step in cascade(detector.model, measured_tower(detector), seed):
            found.steps.append(step)
            for recipe, maps in make().items():
                values = rank_correlation(original[recipe], maps)
                mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
                found.correlation[recipe].append(mean)
    return found


@contextmanager
def weights_put_back(model: nn.Module) -> Iterator[None]:
    """Restore weights and buffers of `model` at the end of the block."""
    before = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(before[name])


def cascade(model: nn.Module, tower: Tower, seed: int) -> Iterator[str]:
    """Randomise step by step: head, blocks from the last to the first, the rest. Yield the name of each finished step.

    Use inside `weights_put_back`. For a network without encoder blocks the steps are its direct children.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    weights = model.state_dict()
    inside = next(f"{name}." if name else "" for name, module in model.named_modules() if module is tower.module)
    blocks = tower.blocks or [name for name, _ in tower.module.named_children()]
    head = [name for name in weights if not name.startswith(inside)]
    groups = [
        *([("head", head)] if inside else []),
        *((block, [name for name in weights if name.startswith(f"{inside}{block}.")]) for block in reversed(blocks)),
        ("embeddings and norms", list(weights)),
    ]
    for step, names in groups:
        for name in names:
            if weights[name].data_ptr() not in done and weights[name].is_floating_point():
                randomise(weights[name], generator)
                done.add(weights[name].data_ptr())
        yield step


@torch.no_grad()
def randomise(weight: Tensor, generator: torch.Generator) -> None:
    """Randomise in place: a matrix becomes normal noise with its mean and standard deviation, a vector is shuffled."""
    if weight.ndim < 2:
        flat = weight.view(-1)
        flat.copy_(flat[torch.randperm(flat.numel(), generator=generator).to(weight.device)].clone())
        return
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    weight.copy_(weight.mean() + weight.std() * noise)


def rank_correlation(one: Tensor, other: Tensor) -> np.ndarray:
    """Compute Spearman's correlation (N,) of pairs of maps (N, h, w); NaN if one of them is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(maps.flatten(1).cpu().numpy(), axis=1) for maps in (one, other))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))
