"""SaCo by the paper's algorithm, and agreement with transplant by SciPy, once more in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tests.explanation_metrics.test_evaluate import LAYER, evaluation_of
from tests.helpers.references.known_evidence import EVIDENCE, GRID, evidence_tree
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.deletion import GROUPS, saco
from utils.gradcam_kit.measure.perturbation import AGREEMENT, changed_patches, transplant_agreement

SIDE = 20
SPEC = Recipe("hirescam", LAYER, "layer_norm1")


def weighted(images: Tensor) -> Tensor:
    """A score that is linear in the pixels: the column's number weighs them."""
    return (images.mean(dim=1) * torch.arange(1.0, SIDE + 1)).mean(dim=(1, 2))


def saco_of_the_paper(image: np.ndarray, fill: np.ndarray, heat: np.ndarray) -> float:
    """Algorithm 1 for one image, with loops; no two values of `heat` are the same."""
    order = np.argsort(-heat.ravel())
    salience, fall = [], []

    def score(pixels: np.ndarray) -> float:
        return float((pixels.mean(axis=0) * np.arange(1, SIDE + 1)).mean())

    for group in np.array_split(order, GROUPS):
        changed = image.reshape(3, -1).copy()
        changed[:, group] = fill.reshape(3, -1)[:, group]
        salience.append(heat.ravel()[group].sum())
        fall.append(score(image) - score(changed.reshape(image.shape)))
    agreed = total = 0.0
    for i in range(GROUPS):
        for j in range(i + 1, GROUPS):
            weight = salience[i] - salience[j]
            agreed += weight if fall[i] >= fall[j] else -weight
            total += abs(weight)
    return agreed / total


def test_saco_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(2)
    images, fill = torch.randn(2, 6, 3, SIDE, SIDE, generator=generator)
    maps = torch.rand(6, SIDE, SIDE, generator=generator)
    found = saco(images, fill, maps, weighted, batch_size=4)
    expected = [
        saco_of_the_paper(*(one.double().numpy() for one in trio)) for trio in zip(images, fill, maps, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert min(expected) < 0 < max(expected)


def test_saco_of_the_best_the_worst_and_no_map() -> None:
    """The score falls by a pixel's column: a map that says so has 1, its mirror image −1, and a flat one 0."""
    columns = torch.arange(1.0, SIDE + 1).expand(SIDE, SIDE)
    maps = torch.stack([columns, columns.flip(1), torch.zeros(SIDE, SIDE)]) / SIDE
    images, fill = torch.ones(3, 3, SIDE, SIDE), torch.zeros(3, 3, SIDE, SIDE)
    assert saco(images, fill, maps, weighted).tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_agreement_counts_the_changed_patches_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    gold, raw = torch.randn(2, 3, 4, 4, generator=generator)
    changed = torch.zeros(3, 4, 4, dtype=torch.bool)
    changed[0, :2], changed[1, 1:], changed[2, 0, :3] = True, True, True
    found = transplant_agreement(gold, changed, {SPEC: raw})[SPEC]
    for i in (0, 1):
        expected = spearmanr(gold[i][changed[i]].double(), raw[i][changed[i]].double()).statistic
        assert found[i] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[2])  # three patches
    elsewhere = raw * ~changed
    assert transplant_agreement(gold, changed, {SPEC: elsewhere})[SPEC][:2].tolist() == [0, 0]
    # A control map of pixels counts by its mean in each patch.
    fine = raw.repeat_interleave(5, dim=1).repeat_interleave(5, dim=2)
    np.testing.assert_allclose(transplant_agreement(gold, changed, {SPEC: fine})[SPEC][:2], found[:2])


def test_changed_patches_by_mask_or_by_difference() -> None:
    reals = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    pixels, masks = reals.clone(), torch.zeros(2, 64, 64, dtype=torch.bool)
    pixels[:, :, :16, :16] += 5  # a whole patch by five levels, another by three
    pixels[:, :, 16:32, :16] += 3
    masks[:, 60:, 48:] = True  # a quarter of the last patch
    found = changed_patches(pixels, reals, masks, torch.tensor([True, False]), (4, 4))
    assert found[0].nonzero().tolist() == [[3, 3]] and found[1].nonzero().tolist() == [[0, 0]]


def test_an_evaluation_has_both(tmp_path: Path) -> None:
    """Only the evidence counts: a map that is hot there and nowhere else falls in step with what the detector loses."""
    evaluation = evaluation_of(tmp_path, evidence_tree(tmp_path / "tree", None, 3))
    misled = Recipe("gradcam", LAYER, "layer_norm1")
    evaluation.make_maps([SPEC, misled])
    evaluation.perturbation([SPEC])
    good = evaluation.columns["SaCo (paired real)"][SPEC]
    assert good.min() > 0.5 and good.min() > np.nanmean(
        evaluation.columns["SaCo (paired real)"][Recipe.control("random")]
    )
    agreement = evaluation.columns[AGREEMENT]
    assert set(agreement) == {SPEC, misled, *map(Recipe.control, ("random", "gaussian", "face"))}
    # Of one forged patch nothing can be ranked; the noise beside it is below what counts as a change.
    assert EVIDENCE < (GRID, GRID) and np.isnan(agreement[SPEC]).all()
