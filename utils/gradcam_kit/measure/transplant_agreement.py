"""Does a map rank the forged patches as patch transplant does? Needs no mask where the real counterpart is there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..engine.recipe import Recipe
from ..judge.transplant import CELLS, transplant_maps
from ..model.detector import LoadedDetector

AGREEMENT = "rank correlation with transplant"
FORGED = 0.1  # share of a patch in the mask from which it counts as changed
CHANGED = 4.0  # grey levels by which its pixels differ on average, where there is no mask: compression changes fewer
FEWEST = 4  # changed patches that can be ranked


def patches_of(detector: LoadedDetector) -> tuple[int, int]:
    """Rows and columns of what is exchanged."""
    side = detector.settings.resolution
    grid: tuple[int, int] | None = detector.model.patch_grid(side, side)
    return grid or CELLS


def transplanted(detector: LoadedDetector, pixels: Tensor, reals: Tensor, changed: Tensor, batch_size: int) -> Tensor:
    """The transplant maps (N, h, w) float32 on the CPU, signed, of the `changed` patches (N, h, w) bool alone.

    `pixels`, `reals`: (N, 3, R, R) uint8.
    """
    grid = patches_of(detector)

    def margins(images: Tensor) -> Tensor:
        with detector.autocast():
            logits = detector.model({"image": images}, inference=True)["cls"].float()
        return logits[:, 1] - logits[:, 0]

    found = []
    parts = list(zip(pixels.split(1), reals.split(1), changed.to(detector.device).split(1), strict=True))
    for one, other, only in tqdm(parts, unit="frame", desc="transplant"):
        images, references = detector.normalised(one), detector.normalised(other)
        found.append(transplant_maps(margins, images, references, grid, 2 * batch_size, only).cpu())
    return torch.cat(found)


def changed_patches(pixels: Tensor, reals: Tensor, masks: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, h, w) bool: the patches that were forged, by the mask (N, R, R) where `masked` (N,), else by the difference.

    `pixels`, `reals`: (N, 3, R, R) uint8.
    """
    by_mask = F.interpolate(masks.float().unsqueeze(1), size=grid, mode="area").squeeze(1) > FORGED
    difference = (pixels.float() - reals.float()).abs().mean(dim=1, keepdim=True)
    by_difference = F.interpolate(difference, size=grid, mode="area").squeeze(1) > CHANGED
    return torch.where(masked.view(-1, 1, 1), by_mask, by_difference)


def transplant_agreement(gold: Tensor, changed: Tensor, maps: Mapping[Recipe, Tensor]) -> dict[Recipe, np.ndarray]:
    """Spearman's rank correlation of each map with `gold` over the changed patches.

    Args:
        gold: transplant maps (N, h, w).
        changed: (N, h, w) bool.
        maps: raw, (N, h', w') each; brought to the grid by their mean.

    Returns:
        (N,) for each map. 0 where the map has one value on all these patches and ranks none; NaN where there are
        fewer than FEWEST of them, or transplant itself does not rank them.
    """
    found = {}
    for spec, raw in maps.items():
        on_grid = F.interpolate(raw.float().unsqueeze(1), size=gold.shape[1:], mode="area").squeeze(1)
        found[spec] = np.array([_spearman(g[c], m[c]) for g, m, c in zip(gold, on_grid, changed, strict=True)])
    return found


def _spearman(gold: Tensor, values: Tensor) -> float:
    from scipy.stats import spearmanr

    if len(gold) < FEWEST or bool((gold == gold[0]).all()):
        return float("nan")
    if bool((values == values[0]).all()):
        return 0.0
    return float(spearmanr(gold.double().numpy(), values.double().numpy())[0])
