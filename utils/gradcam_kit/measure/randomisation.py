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
from .sweep import maps_of

FAILS_FROM = 0.3  # rank correlation, all weights random, from which a method fails


class Randomised(NamedTuple):
    """Mean rank correlation with the original map after each step of the cascade, for each kind of map."""

    steps: list[str]
    correlation: dict[Recipe, list[float]]  # NaN where every map is constant


def randomisation(
    detector: LoadedDetector,
    specs: Sequence[Recipe],
    fused_layers: Sequence[str],
    pixels: Tensor,
    target: Target,
    seed: int,
    batch_size: int,
) -> Randomised:
    """Randomise the detector's weights step by step and compare the maps with the original ones.

    Afterwards the detector is as it was. `pixels`: (N, 3, R, R) uint8; `fused_layers` as in `maps_of`.
    """
    original = maps_of(detector, specs, fused_layers, pixels, target, batch_size)
    steps = []
    correlations: dict[Recipe, list[np.ndarray]] = {spec: [] for spec in specs}
    with weights_put_back(detector.model):
        for step in cascade(detector.model, detector.model.explained_tower, seed):
            steps.append(step)
            for spec, maps in maps_of(detector, specs, fused_layers, pixels, target, batch_size).items():
                correlations[spec].append(rank_correlation(original[spec], maps))
    return Randomised(steps, {spec: mean_correlation(values) for spec, values in correlations.items()})


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
    prefixes = {id(module): name for name, module in model.named_modules()}
    inside = prefixes[id(tower)]
    blocks = block_names(tower) or [name for name, _ in tower.named_children()]
    outside = [name for name in model.state_dict() if not name.startswith(f"{inside}.")]
    groups = [("head", outside)]
    for block in reversed(blocks):
        groups.append((block, [name for name in model.state_dict() if name.startswith(f"{inside}.{block}.")]))
    groups.append(("embeddings and norms", list(model.state_dict())))
    for step, names in groups:
        state = model.state_dict()
        for name in names:
            if state[name].data_ptr() not in done and state[name].is_floating_point():
                randomise(state[name], generator)
                done.add(state[name].data_ptr())
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


def mean_correlation(correlations: Sequence[np.ndarray]) -> list[float]:
    """The mean over the images that have one, for each step; NaN where none has."""
    return [float(np.nanmean(step)) if np.isfinite(step).any() else float("nan") for step in correlations]
