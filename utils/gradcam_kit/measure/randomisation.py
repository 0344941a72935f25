"""Sanity check by weight randomisation: a map that stays the same when the weights are noise explains no detector.

Adebayo et al. 2018: the weights are randomised in a cascade, from the head to the first block, and after each step the
rank correlation of the new map with the original one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.layers import block_names
from ..engine.recipe import Recipe
from ..engine.targets import Target
from ..model.detector import LoadedDetector
from .sweep import make_maps

FAILS_FROM = 0.3  # rank correlation, all weights random, from which a method fails


class Randomised(NamedTuple):
    """Mean rank correlation with the original map after each step of the cascade, for each kind of map."""

    steps: list[str]
    correlation: dict[Recipe, list[float]]  # NaN where every map is constant


def randomisation(
    detector: LoadedDetector,
    recipes: Sequence[Recipe],
    fused_of: Sequence[str],
    pixels: Tensor,
    target: Target,
    seed: int,
    batch_size: int,
) -> Randomised:
    """Randomise the detector's weights step by step and compare the maps with the original ones.

    Afterwards the detector is as it was. `pixels`: (N, 3, R, R) uint8; `fused_of` as in `make_maps`.
    """
    original = make_maps(detector, recipes, pixels, target, batch_size, fused_of)
    steps = []
    correlations: dict[Recipe, list[float]] = {recipe: [] for recipe in recipes}
    with weights_put_back(detector.model):
        for step in cascade(detector.model, detector.model.explained_tower, seed):
            steps.append(step)
            for recipe, maps in make_maps(detector, recipes, pixels, target, batch_size, fused_of).items():
                correlations[recipe].append(mean_correlation(rank_correlation(original[recipe], maps)))
    return Randomised(steps, correlations)


@contextmanager
def weights_put_back(model: nn.Module) -> Iterator[None]:
    """Restores weights and buffers of `model` at the end of the block."""
    before = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(before[name])


def cascade(model: nn.Module, tower: nn.Module, seed: int) -> Iterator[str]:
    """Randomise step by step, yielding the name of each step once done: head, blocks from the last on, the rest.

    Use inside `weights_put_back`. For a network without encoder blocks the steps are its direct children.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    weights = model.state_dict()
    inside = next(name for name, module in model.named_modules() if module is tower)
    blocks = block_names(tower) or [name for name, _ in tower.named_children()]
    groups = [
        ("head", [name for name in weights if not name.startswith(f"{inside}.")]),
        *((block, [name for name in weights if name.startswith(f"{inside}.{block}.")]) for block in reversed(blocks)),
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
    """In place: a matrix becomes normal noise of its own mean and standard deviation, a vector is shuffled."""
    if weight.ndim < 2:
        flat = weight.view(-1)
        flat.copy_(flat[torch.randperm(flat.numel(), generator=generator).to(weight.device)].clone())
        return
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    weight.copy_(weight.mean() + weight.std() * noise)


def rank_correlation(one: Tensor, other: Tensor) -> np.ndarray:
    """Spearman's rank correlation of each pair of maps (N, h, w): (N,); NaN where one of them is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(maps.flatten(1).cpu().numpy(), axis=1) for maps in (one, other))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))


def mean_correlation(correlations: np.ndarray) -> float:
    """The mean over the images that have one; NaN where none has."""
    return float(np.nanmean(correlations)) if np.isfinite(correlations).any() else float("nan")
