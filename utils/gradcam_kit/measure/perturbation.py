"""What runs the detector again for some images: deletion and insertion, SaCo, and the ranking where there are no masks.

What a pixel is replaced by matters for deepfakes, since a grey patch is no real face either: beside blur and the mean
colour there is the same frame of the real video (Gowrisankar and Thing 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.recipe import Recipe
from ..judge.deletion import Curves, Score, area, deletion_insertion, saco, score_without, scores_of
from ..judge.trial import PAIRED_REAL, blurred, mean_coloured
from ..model.detector import LoadedDetector
from .comparison import Columns
from .samples import RealFrames
from .sweep import resized

FILLS = ("blur", "mean", PAIRED_REAL)
SCREENED = 0.1  # the share that is replaced where maps are ranked without masks


class Examined(NamedTuple):
    """N of the images and their maps, as the measurements take them. `seed` breaks ties."""

    detector: LoadedDetector
    pixels: Tensor  # (N, 3, R, R) uint8
    drawn: Mapping[Recipe, Tensor]  # (N, R, R) in [0, 1], on the detector's device
    seed: int
    batch_size: int


def deletion_metrics(examined: Examined, reals: RealFrames) -> tuple[Columns, dict[str, dict[Recipe, Curves]]]:
    """Areas under both curves for each fill, one value per image, and the curves themselves.

    Without any real counterpart the fill PAIRED_REAL is left out.
    """
    images, score = examined.detector.normalised(examined.pixels), fake_probability(examined.detector)
    columns: Columns = {}
    curves: dict[str, dict[Recipe, Curves]] = {}
    with tqdm(total=len(FILLS) * len(examined.drawn), unit="curve", desc="deletion and insertion") as bar:
        for fill in FILLS:
            use = reals.paired if fill == PAIRED_REAL else torch.ones(len(images), dtype=torch.bool)
            if not use.any():
                bar.update(len(examined.drawn))
                continue
            used = use.to(images.device)
            replacement = _fill(examined.detector, fill, images[used], reals.pixels[use])
            curves[fill] = {}
            for recipe, drawn in examined.drawn.items():
                found = deletion_insertion(
                    images[used], replacement, drawn[used], score, examined.seed, batch_size=2 * examined.batch_size
                )
                curves[fill][recipe] = found
                for kind, curve in found._asdict().items():
                    columns.setdefault(f"{kind} ({fill})", {})[recipe] = with_gaps(area(curve).numpy(), use, len(use))
                bar.update()
    return columns, curves


def saco_metrics(examined: Examined, reals: RealFrames) -> Columns:
    """With the paired real where there is any, else with the mean colour, which is the paper's."""
    fill = PAIRED_REAL if bool(reals.paired.any()) else "mean"
    use = reals.paired if fill == PAIRED_REAL else torch.ones(len(examined.pixels), dtype=torch.bool)
    images = examined.detector.normalised(examined.pixels[use])
    replacement = _fill(examined.detector, fill, images, reals.pixels[use])
    score, batch_size = fake_probability(examined.detector), 2 * examined.batch_size
    column = {}
    for recipe, drawn in examined.drawn.items():
        values = saco(images, replacement, drawn[use.to(drawn.device)], score, examined.seed, batch_size)
        column[recipe] = with_gaps(values.double().numpy(), use, len(use))
    return {f"SaCo ({fill})": column}


def screening(examined: Examined, maps: Mapping[Recipe, Tensor]) -> dict[Recipe, np.ndarray]:
    """How far the probability of fake falls (N,) once the hottest tenth is blurred: ranks maps without any mask.

    `maps`: raw (N, h, w), many of them; resized here, one kind at a time.
    """
    detector, seed, batch_size = examined.detector, examined.seed, examined.batch_size
    images = detector.normalised(examined.pixels)
    fill, score = blurred(images), fake_probability(detector)
    with torch.no_grad():
        before = scores_of(score, images, batch_size).cpu()
    found = {}
    for recipe, raw in tqdm(maps.items(), desc="ranking maps by deletion", unit="map"):
        after = score_without(images, fill, resized(detector, raw), score, SCREENED, seed, batch_size)
        found[recipe] = (before - after).numpy()
    return found


def fake_probability(detector: LoadedDetector) -> Score:
    """Normalised images (N, 3, R, R) on the device → probability of fake (N,)."""
    return lambda images: detector.scores(images).prob_fake.float()


def _fill(detector: LoadedDetector, fill: str, images: Tensor, reals: Tensor) -> Tensor:
    if fill == "blur":
        return blurred(images)
    return mean_coloured(images) if fill == "mean" else detector.normalised(reals)


def with_gaps(values: np.ndarray, places: Tensor, count: int) -> np.ndarray:
    """Values (n, ...) of the images at `places`, n positions or (count,) bool → (count, ...), NaN for the others."""
    full = np.full((count, *values.shape[1:]), np.nan)
    full[places.numpy()] = values
    return full
