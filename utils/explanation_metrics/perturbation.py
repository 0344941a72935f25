"""The metrics that ask the detector again: deletion, insertion, segment attack, weight randomisation."""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.cam.targets import Target
from utils.cam.tokens import frozen_for_explaining
from utils.explanation_metrics.comparison import Key
from utils.explanation_metrics.deletion import (
    FILLS,
    PAIRED_REAL,
    Curves,
    Score,
    area,
    blurred,
    deletion_insertion,
    mean_coloured,
    score_without,
)
from utils.explanation_metrics.randomisation import cascade, mean_correlation, rank_correlation, weights_put_back
from utils.explanation_metrics.segment_attack import TOP, attacked, hottest_segments, slic_segments
from utils.explanation_metrics.sweep import Spec, maps_of, resized
from utils.model.detector import LoadedDetector

Columns = Dict[str, Dict[Key, np.ndarray]]  # metric → {key: (frames,) float}; see `comparison.Values`
SCREENED = 0.1  # share of the pixels replaced where maps are ranked without masks


class Fills(NamedTuple):
    """What deleted pixels are replaced by: the real counterpart of each picture, where `paired`."""

    real: Tensor  # (N, 3, R, R) uint8
    paired: Tensor  # (N,) bool


def fake_probability(detector: LoadedDetector) -> Score:
    """Normalised pictures (N, 3, R, R) on the device → probability of fake (N,)."""

    def score(pictures: Tensor) -> Tensor:
        with detector.autocast():
            return detector.model({"image": pictures}, inference=True)["prob"].float()

    return score


def deletion_metrics(
    detector: LoadedDetector, maps: Mapping[Key, Tensor], pixels: Tensor, fills: Fills, seed: int, batch_size: int
) -> tuple[Columns, dict[str, dict[Key, Curves]]]:
    """Areas under both curves for each fill, one value a picture, and the curves themselves.

    `maps`: (N, H, W) normalised, on the detector's device; `pixels`: (N, 3, H, W) uint8.
    """
    pictures = detector.normalised(pixels)
    score = fake_probability(detector)
    columns: Columns = {}
    curves: dict[str, dict[Key, Curves]] = {}
    with tqdm(total=len(FILLS) * len(maps), unit="curve", desc="deletion and insertion") as bar:
        for fill in FILLS:
            use = fills.paired if fill == PAIRED_REAL else torch.ones(len(pixels), dtype=torch.bool)
            if not use.any():
                bar.update(len(maps))
                continue
            there = use.to(pictures.device)
            replaced = _fill(detector, fill, pictures[there], fills.real[use])
            curves[fill] = {}
            for key, drawn in maps.items():
                found = deletion_insertion(
                    pictures[there], replaced, drawn[there], score, seed, batch_size=2 * batch_size
                )
                curves[fill][key] = found
                for kind, curve in (("deletion", found.deletion), ("insertion", found.insertion)):
                    column = np.full(len(pixels), np.nan)
                    column[use.numpy()] = area(curve).numpy()
                    columns.setdefault(f"{kind} ({fill})", {})[key] = column
                bar.update()
    return columns, curves


def _fill(detector: LoadedDetector, fill: str, pictures: Tensor, real: Tensor) -> Tensor:
    if fill == "blur":
        return blurred(pictures)
    return mean_coloured(pictures) if fill == "mean" else detector.normalised(real)


def screening(
    detector: LoadedDetector, maps: Mapping[Key, Tensor], pixels: Tensor, seed: int, batch_size: int
) -> dict[Key, np.ndarray]:
    """How far the probability of fake falls once the hottest tenth is blurred: ranks maps where there are no masks.

    `maps`: raw (N, h, w); resized here, one kind at a time.
    """
    pictures = detector.normalised(pixels)
    fill, score = blurred(pictures), fake_probability(detector)
    with torch.no_grad():
        before = torch.cat([score(part) for part in pictures.split(batch_size)]).cpu()
    return {
        key: (before - score_without(pictures, fill, resized(detector, raw), score, SCREENED, seed, batch_size)).numpy()
        for key, raw in tqdm(maps.items(), desc="ranking maps by deletion", unit="map")
    }


def attack_metrics(
    detector: LoadedDetector, maps: Mapping[Key, Tensor], pixels: Tensor, seed: int, batch_size: int
) -> Columns:
    """Share of detected fakes that pass for real once their hottest one, two and three segments are attacked.

    That is the drop of accuracy, since every one of them was called fake. `maps` as in `deletion_metrics`. Raises
    ImportError without scikit-image.
    """
    segments = slic_segments(pixels).to(detector.device)
    start = pixels.to(detector.device).float() / 255
    mean, std = (
        torch.tensor(one, device=detector.device).view(3, 1, 1) for one in (detector.gradcam.mean, detector.gradcam.std)
    )

    def margin(pictures: Tensor) -> Tensor:
        with detector.autocast():
            logits = detector.model({"image": (pictures - mean) / std}, inference=True)["cls"].float()
        return logits[:, 1] - logits[:, 0]

    columns: Columns = {}
    with frozen_for_explaining(detector.model), tqdm(
        total=len(TOP) * len(maps), unit="attack", desc="segment attack"
    ) as bar:
        for top in TOP:
            for key, drawn in maps.items():
                where = hottest_segments(drawn, segments, top, seed)
                fooled = []
                for part, spot in zip(start.split(batch_size), where.split(batch_size)):
                    after = attacked(part, spot, margin)
                    with torch.no_grad():
                        fooled.append((margin(after) <= 0).cpu())
                columns.setdefault(f"accuracy drop (top {top})", {})[key] = torch.cat(fooled).double().numpy()
                bar.update()
    return columns


class Randomised(NamedTuple):
    """Mean rank correlation with the original map after each step of the cascade, for each kind of map."""

    steps: list[str]
    correlation: dict[Spec, list[float]]  # NaN where every map is constant


def randomisation(
    detector: LoadedDetector,
    specs: Sequence[Spec],
    fused_layers: Sequence[str],
    pixels: Tensor,
    target: Target,
    seed: int,
    batch_size: int,
) -> Randomised:
    """Randomise the detector's weights step by step and see the maps change; afterwards it is as it was."""
    original = maps_of(detector, specs, fused_layers, pixels, target, batch_size)
    steps = []
    found: dict[Spec, list[np.ndarray]] = {spec: [] for spec in specs}
    with weights_put_back(detector.model):
        for step in cascade(detector.model, detector.model.explained_tower, seed):
            steps.append(step)
            for spec, maps in maps_of(detector, specs, fused_layers, pixels, target, batch_size).items():
                found[spec].append(rank_correlation(original[spec], maps))
    return Randomised(steps, {spec: mean_correlation(values) for spec, values in found.items()})
