"""Measurements that run the detector on changed images: deletion and insertion, SaCo, transplant, segment attack.

The fill matters for deepfakes, because a grey patch is no real face either. So there is also the same frame of the real
video (Gowrisankar and Thing 2024), as well as blur and the mean colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..engine.frozen import frozen_for_explaining
from ..engine.recipe import Recipe
from ..judge.deletion import Curves, Score, area, deletion_insertion, hottest_first, saco, score_without, scores_of
from ..judge.transplant import CELLS, transplant_maps
from ..judge.trial import PAIRED_REAL, blurred, mean_coloured
from ..model.detector import LoadedDetector
from .clips import FRAME_CELLS, clips_of, frames_of, pictures_of, scores
from .comparison import Columns
from .counterparts import RealFrames
from .sweep import resized

FILLS = ("blur", "mean", PAIRED_REAL)
SCREENED = 0.1  # replaced share for ranking maps without masks
AGREEMENT = "rank correlation with transplant"
FORGED = 0.1  # a patch counts as changed if the mask covers this share of it
CHANGED = 4.0  # without a mask: mean difference in grey levels, more than compression causes
FEWEST = 4  # changed patches needed for a ranking
SEGMENTS, COMPACTNESS = 50, 10.0  # SLIC's parameters
BUDGET, STEPS = 16 / 255, 5  # segment attack: maximum change of a pixel, and gradient steps
TOP = (1, 2, 3)  # numbers of hottest segments to attack

Margin = Callable[[Tensor], Tensor]  # images (N, 3, H, W) in [0, 1] → (N,) fake - real, differentiable


class Examined(NamedTuple):
    """N pictures, images or clips, and their maps for the measurements. `seed` breaks ties."""

    detector: LoadedDetector
    pixels: Tensor  # (N, 3, H, R) uint8, H = R for an image
    drawn: Mapping[Recipe, Tensor]  # (N, H, R) in [0, 1], on the detector's device
    seed: int
    batch_size: int


def deletion_metrics(examined: Examined, reals: RealFrames) -> tuple[Columns, dict[str, dict[Recipe, Curves]]]:
    """Return the areas under both curves per fill and image, and the curves; PAIRED_REAL only for pairs."""
    score, batch_size = fake_probability(examined.detector), 2 * examined.batch_size
    columns: Columns = {}
    curves: dict[str, dict[Recipe, Curves]] = {}
    with tqdm(total=len(FILLS) * len(examined.drawn), unit="curve", desc="deletion and insertion") as bar:
        for fill in FILLS:
            if fill == PAIRED_REAL and not reals.paired.any():
                bar.update(len(examined.drawn))
                continue
            use, images, replacement = _filled(examined, fill, reals)
            curves[fill] = {}
            for recipe, drawn in examined.drawn.items():
                used = drawn[use.to(drawn.device)]
                found = deletion_insertion(images, replacement, used, score, examined.seed, batch_size=batch_size)
                curves[fill][recipe] = found
                for kind, curve in found._asdict().items():
                    columns.setdefault(f"{kind} ({fill})", {})[recipe] = with_gaps(area(curve).numpy(), use, len(use))
                bar.update()
    return columns, curves


def saco_metrics(examined: Examined, reals: RealFrames) -> Columns:
    """Compute SaCo with the paired real if there is any, else with the mean colour, as in its paper."""
    fill = PAIRED_REAL if bool(reals.paired.any()) else "mean"
    use, images, replacement = _filled(examined, fill, reals)
    score, batch_size = fake_probability(examined.detector), 2 * examined.batch_size
    column = {}
    for recipe, drawn in examined.drawn.items():
        values = saco(images, replacement, drawn[use.to(drawn.device)], score, examined.seed, batch_size)
        column[recipe] = with_gaps(values.double().numpy(), use, len(use))
    return {f"SaCo ({fill})": column}


def screening(examined: Examined, maps: Mapping[Recipe, Tensor]) -> dict[Recipe, np.ndarray]:
    """Measure the drop (N,) of P(fake) when the hottest tenth by raw `maps` (N, h, w) is blurred."""
    detector, seed, batch_size = examined.detector, examined.seed, examined.batch_size
    images = detector.normalise(examined.pixels)
    fill, score = blurred_frames(detector, images), fake_probability(detector)
    with torch.no_grad():
        before = scores_of(score, images, batch_size).cpu()
    found = {}
    for recipe, raw in tqdm(maps.items(), desc="ranking maps by deletion", unit="map"):
        after = score_without(images, fill, resized(detector, raw), score, SCREENED, seed, batch_size)
        found[recipe] = (before - after).numpy()
    return found


def fake_probability(detector: LoadedDetector) -> Score:
    """Return a function from normalised pictures (N, 3, H, R) to P(fake) (N,)."""
    return lambda pictures: scores(detector, pictures).prob_fake.float()


def blurred_frames(detector: LoadedDetector, pictures: Tensor) -> Tensor:
    """Blur each frame of normalised pictures (N, 3, H, R) separately."""
    frames = clips_of(pictures, frames_of(detector))
    return pictures_of(blurred(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))


def _filled(examined: Examined, fill: str, reals: RealFrames) -> tuple[Tensor, Tensor, Tensor]:
    """Return which images have this fill, (N,) bool; these images, normalised; and their replacement."""
    detector, pixels = examined.detector, examined.pixels
    if fill == PAIRED_REAL:
        return reals.paired, detector.normalise(pixels[reals.paired]), detector.normalise(reals.pixels[reals.paired])
    images = detector.normalise(pixels)
    replacement = blurred_frames(detector, images) if fill == "blur" else mean_coloured(images)
    return torch.ones(len(pixels), dtype=torch.bool), images, replacement


def with_gaps(values: np.ndarray, places: Tensor, count: int) -> np.ndarray:
    """Expand values (n, ...) of the images at `places` to (count, ...), with NaN for the others."""
    full = np.full((count, *values.shape[1:]), np.nan)
    full[places.numpy()] = values
    return full


def patches_of(detector: LoadedDetector) -> tuple[int, int]:
    """Return rows and columns of the patches to exchange."""
    side, clip_size = detector.settings.resolution, detector.settings.clip_size
    if clip_size is not None:
        return clip_size * FRAME_CELLS, FRAME_CELLS
    return detector.model.patch_grid(side, side) or CELLS


def transplanted(detector: LoadedDetector, pixels: Tensor, reals: Tensor, changed: Tensor, batch_size: int) -> Tensor:
    """Compute signed transplant maps (N, h, w) float32 on the CPU for the `changed` patches of uint8 (N, 3, R, R)."""
    grid = patches_of(detector)
    found = []
    parts = zip(pixels.split(1), reals.split(1), changed.to(detector.device).split(1), strict=True)
    for one, other, only in tqdm(parts, total=len(pixels), unit="frame", desc="transplant"):
        images, references = detector.normalise(one), detector.normalise(other)
        maps = transplant_maps(lambda x: scores(detector, x).margin, images, references, grid, 2 * batch_size, only)
        found.append(maps.cpu())
    return torch.cat(found)


def changed_patches(pixels: Tensor, reals: Tensor, masks: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the forged patches (N, h, w) bool: by masks (N, R, R) if `masked` (N,), else by comparing the images."""
    by_mask = F.interpolate(masks.float().unsqueeze(1), size=grid, mode="area").squeeze(1) > FORGED
    difference = (pixels.float() - reals.float()).abs().mean(dim=1, keepdim=True)
    by_difference = F.interpolate(difference, size=grid, mode="area").squeeze(1) > CHANGED
    return torch.where(masked.view(-1, 1, 1), by_mask, by_difference)


def transplant_agreement(gold: Tensor, changed: Tensor, maps: Mapping[Recipe, Tensor]) -> dict[Recipe, np.ndarray]:
    """Compute Spearman's correlation (N,) of each raw map with the transplant maps `gold` over the `changed` patches.

    It is 0 for a map that is constant there, and NaN with fewer than FEWEST patches or a constant `gold`. Maps on
    another grid are averaged to that of `gold`.
    """
    found = {}
    for recipe, raw in maps.items():
        on_grid = F.interpolate(raw.float().unsqueeze(1), size=gold.shape[1:], mode="area").squeeze(1)
        found[recipe] = np.array([_spearman(g[c], m[c]) for g, m, c in zip(gold, on_grid, changed, strict=True)])
    return found


def _spearman(gold: Tensor, values: Tensor) -> float:
    from scipy.stats import spearmanr

    if len(gold) < FEWEST or bool((gold == gold[0]).all()):
        return float("nan")
    if bool((values == values[0]).all()):
        return 0.0
    return float(spearmanr(gold.double().numpy(), values.double().numpy())[0])


def attack_metrics(examined: Examined) -> Columns:
    """Test whether each detected fake is called real (1) after changing its hottest one, two and three SLIC segments.

    After Tsigos, Apostolidis and Mezaris 2024 (arXiv 2404.18649), who estimate the gradient (NES); here projected
    gradient steps use the true one (Madry et al. 2018). The mean is the drop of accuracy, because all were called fake.
    Raises ImportError without scikit-image.
    """
    detector, pixels, maps, seed, batch_size = examined
    segments = slic_segments(pixels).to(detector.device)
    start = pixels.to(detector.device).float() / 255
    mean, std = (
        torch.tensor(values, device=detector.device).view(3, 1, 1)
        for values in (detector.gradcam.mean, detector.gradcam.std)
    )

    def margin(images: Tensor) -> Tensor:
        return detector.scores((images - mean) / std).margin

    columns: Columns = {}
    with (
        frozen_for_explaining(detector.model),
        tqdm(total=len(TOP) * len(maps), unit="attack", desc="segment attack") as bar,
    ):
        for top in TOP:
            for recipe, drawn in maps.items():
                where = hottest_segments(drawn, segments, top, seed)
                fooled = []
                for part, spot in zip(start.split(batch_size), where.split(batch_size), strict=True):
                    after = attacked(part, spot, margin)
                    with torch.no_grad():
                        fooled.append((margin(after) <= 0).cpu())
                columns.setdefault(f"accuracy drop (top {top})", {})[recipe] = torch.cat(fooled).double().numpy()
                bar.update()
    return columns


def slic_segments(pixels: Tensor) -> Tensor:
    """Segment images (N, 3, H, W) uint8 RGB: (N, H, W) int64, each pixel's segment from 0. Raises ImportError."""
    try:
        from skimage.segmentation import slic  # optional, and slow to import
    except ImportError as error:
        raise ImportError("it needs scikit-image: pip install scikit-image") from error
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    segments = [slic(image, SEGMENTS, COMPACTNESS, start_label=0, channel_axis=-1) for image in images]
    return torch.from_numpy(np.stack(segments)).to(pixels.device)


def hottest_segments(maps: Tensor, segments: Tensor, top: int, seed: int) -> Tensor:
    """Select the `top` segments with the highest mean map value: (N, H, W) bool; ties at random by `seed`."""
    labels = segments.flatten(1)
    count = int(labels.max()) + 1
    sums = torch.zeros(len(maps), count, device=maps.device).scatter_add_(1, labels, maps.flatten(1))
    sizes = torch.zeros_like(sums).scatter_add_(1, labels, torch.ones_like(maps).flatten(1))
    heat = torch.where(
        sizes > 0, sums / sizes.clamp(min=1), torch.full_like(sums, -1.0)
    )  # segments that an image lacks
    chosen = torch.zeros_like(heat, dtype=torch.bool).scatter_(1, hottest_first(heat, seed)[:, :top], True)
    return chosen.gather(1, labels).view_as(segments)


def attacked(images: Tensor, where: Tensor, margin: Margin, budget: float = BUDGET, steps: int = STEPS) -> Tensor:
    """Push images (N, 3, H, W) in [0, 1] towards "real" at the pixels `where` (N, H, W), by at most `budget`.

    The weights of `margin` must be constants (see `frozen_for_explaining`), and gradients enabled.
    """
    low, high = (images - budget).clamp(min=0), (images + budget).clamp(max=1)
    step = 2.5 * budget / steps * where.unsqueeze(1)
    moved = images
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(leaf).sum(), leaf)
        moved = torch.minimum(torch.maximum(moved - step * gradient.sign(), low), high)
    return moved.detach()
