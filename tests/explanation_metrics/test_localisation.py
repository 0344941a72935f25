"""The metrics of explanations against hand-computed values, scikit-learn, SciPy, torchcam and, where there, Quantus."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor

from tests.helpers.detectors import images, tiny_detector
from utils.gradcam_kit.engine.tokens import frozen_for_explaining
from utils.gradcam_kit.engine.towers.tower import tower_of
from utils.gradcam_kit.judge.bootstrap import VideoBootstrap, holm
from utils.gradcam_kit.judge.controls import face_map, gaussian_map
from utils.gradcam_kit.judge.deletion import (
    area,
    deletion_insertion,
    pixel_ranks,
    score_without,
)
from utils.gradcam_kit.judge.localisation import FIXED_LEVEL, IOU_LEVELS, energy_in_mask, localise, pointing_game
from utils.gradcam_kit.judge.trial import blurred, mean_coloured
from utils.gradcam_kit.measure.perturbation import attacked, hottest_segments, slic_segments
from utils.gradcam_kit.measure.sweep import cascade, rank_correlation, weights_put_back


def random_case(count: int = 6, side: int = 20) -> tuple[Tensor, Tensor]:
    """Maps in [0, 1] and masks of a few pixels."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(count, side, side, generator=generator)
    maps = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    masks = torch.rand(count, side, side, generator=generator) < 0.2
    return maps, masks


# -------------------------------------------------------------------------------------------------------- localisation


def test_localisation_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.5], [0.25, 0.0]], [[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor(
        [[[True, False], [True, False]], [[False, True], [True, False]], [[True, False], [False, False]]]
    )
    # Two pixels tie for the hottest in the second map, one of them inside; the third map is empty.
    assert pointing_game(maps, masks).tolist() == [1.0, 0.5, 0.0]
    np.testing.assert_allclose(energy_in_mask(maps, masks), [1.25 / 1.75, 0.5, 0.0], rtol=1e-6)
    found = localise(maps, masks)
    # First: pixels in order in, out, in: AP = (1/1 + 2/3) / 2. Second: two ties first, one inside, then the rest.
    np.testing.assert_allclose(found.average_precision, [(1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.iou_fixed, [1 / 3, 1 / 3, 0.0], rtol=1e-6)  # 0.5 is level 128


def test_localisation_equals_scikit_learn() -> None:
    maps, masks = random_case()
    found = localise(maps, masks)
    for i in range(len(maps)):
        level = np.rint(maps[i].numpy() * 255)
        truth = masks[i].numpy().ravel()
        assert found.average_precision[i] == pytest.approx(average_precision_score(truth, level.ravel()), abs=1e-6)
        assert found.iou_fixed[i] == pytest.approx(jaccard_score(truth, level.ravel() >= FIXED_LEVEL), abs=1e-6)
        for t, threshold in enumerate(IOU_LEVELS):
            assert found.iou[i, t] == pytest.approx(jaccard_score(truth, level.ravel() >= threshold), abs=1e-6)


def test_localisation_equals_quantus() -> None:
    quantus = pytest.importorskip("quantus", reason="needs Quantus, which `make test` installs")
    maps, masks = random_case()
    a, s = maps.numpy()[:, None], masks.numpy()[:, None]
    silent: dict[str, Any] = {"disable_warnings": True, "normalise": False, "abs": False}
    np.testing.assert_allclose(
        quantus.PointingGame(**silent).evaluate_batch(a_batch=a, s_batch=s), pointing_game(maps, masks)
    )
    mass = quantus.RelevanceMassAccuracy(**silent).evaluate_batch(a_batch=a, s_batch=s)
    np.testing.assert_allclose(energy_in_mask(maps, masks), mass, rtol=1e-5)
    b = torch.rand(maps.shape, generator=torch.Generator().manual_seed(8))
    theirs = quantus.similarity_func.correlation_spearman(maps.flatten(1).numpy(), b.flatten(1).numpy(), batched=True)
    np.testing.assert_allclose(rank_correlation(maps, b), theirs, atol=1e-9)


def test_controls() -> None:
    blob = gaussian_map((9, 9))
    assert blob.argmax() == 40 and blob[4, 4] == 1 and blob[0, 4] == pytest.approx(np.exp(-2))
    points = np.zeros((81, 2), np.float32)
    points[17:68] = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75]] * 17
    face = face_map([points, None], (8, 8))  # a triangle; its corner (0.25, 0.75) is left out
    assert face[3, 5] == 1 and face[5, 3] == 0 and face[0, 0] == 0
    assert face_map([None], (8, 8)).max() > 0.9


# -------------------------------------------------------------------------------------------------- deletion, insertion


class GivenMaps:
    """As much of a torchcam extractor as its metric asks for, with maps in which no two values tie."""

    def __init__(self, model: torch.nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *unused: object, **neither: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_deletion_and_insertion_equal_torchcam() -> None:
    from torchcam.metrics import DeletionInsertionMetric

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2)).eval()
    image = images(3, pixels=20)
    maps = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(2))
    metric = DeletionInsertionMetric(
        GivenMaps(model, maps), lambda logits: logits.softmax(-1), steps=10, baseline=image.mean((2, 3), keepdim=True)
    )
    metric.update(image, 1)
    theirs = metric.summary()
    shares = [k / 10 for k in range(11)]
    curves = deletion_insertion(image, mean_coloured(image), maps, lambda x: model(x).softmax(-1)[:, 1], shares=shares)
    assert float(area(curves.deletion, shares).mean()) == pytest.approx(theirs["deletion_auc"], abs=1e-6)
    assert float(area(curves.insertion, shares).mean()) == pytest.approx(theirs["insertion_auc"], abs=1e-6)


def test_deletion_by_hand() -> None:
    """The score is the mean brightness of four pixels; the hottest first."""
    image = torch.tensor([[4.0, 3.0], [2.0, 1.0]]).expand(1, 3, 2, 2)
    heat = torch.tensor([[[0.1, 1.0], [0.5, 0.0]]])  # order: 3, 2, 4, 1
    curves = deletion_insertion(
        image, torch.zeros_like(image), heat, lambda x: x.mean((1, 2, 3)), shares=[0, 0.25, 0.5, 0.75, 1]
    )
    assert curves.deletion.tolist() == [[2.5, 1.75, 1.25, 0.25, 0.0]]
    assert curves.insertion.tolist() == [[0.0, 0.75, 1.25, 2.25, 2.5]]
    assert float(area(curves.deletion, [0, 0.25, 0.5, 0.75, 1])) == pytest.approx((2.5 / 2 + 1.75 + 1.25 + 0.25) / 4)
    assert float(score_without(image, torch.zeros_like(image), heat, lambda x: x.mean((1, 2, 3)), 0.5)) == 1.25


def test_ties_are_broken_at_random_and_again_the_same() -> None:
    flat = torch.zeros(1, 30, 30)
    flat[0, 0, 0] = 1
    first, again, other = (pixel_ranks(flat, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[0] == 0 and sorted(first.tolist()) == list(range(900))
    assert abs(stats.spearmanr(first[1:], np.arange(899)).statistic) < 0.15  # no order of rows is left in it


def test_blur_equals_scipy() -> None:
    image = images(1, pixels=40)
    expected = ndimage.gaussian_filter(image[0].numpy(), (0, 2, 2), mode="mirror", truncate=3)
    np.testing.assert_allclose(blurred(image)[0], expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ segment attack


def test_attack_keeps_its_budget_over_all_steps_and_its_segments() -> None:
    model = tiny_detector()
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    where = torch.zeros(3, 64, 64, dtype=torch.bool)
    where[:, 10:40, 20:50] = True

    def margin(x: Tensor) -> Tensor:
        logits = model({"image": x * 2 - 1})["cls"]
        return logits[:, 1] - logits[:, 0]

    with frozen_for_explaining(model):
        moved = attacked(image, where, margin, budget=16 / 255, steps=9)
        assert bool((margin(moved) < margin(image)).all())
    change = (moved - image).abs()
    assert float(change.max()) == pytest.approx(16 / 255, abs=1e-6)  # used up, and never more
    assert float(change[:, :, ~where[0]].max()) == 0 and float(moved.min()) >= 0 and float(moved.max()) <= 1


def test_hottest_segments_are_chosen_by_their_mean() -> None:
    segments = torch.tensor([[[0, 0, 1], [2, 2, 1]]])
    heat = torch.tensor([[[0.9, 0.0, 0.6], [0.5, 0.4, 0.5]]])  # means 0.45, 0.55, 0.45
    heat[0, 1, 0] = 0.6  # now segment 2 has 0.5
    assert hottest_segments(heat, segments, 1, 0).tolist() == [[[False, False, True], [False, False, True]]]
    assert hottest_segments(heat, segments, 2, 0).tolist() == [[[False, False, True], [True, True, True]]]


def test_slic_separates_what_differs() -> None:
    pytest.importorskip("skimage")
    halves = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    halves[:, :, :, 32:] = 255
    segments = slic_segments(halves)[0]
    assert segments.min() == 0 and 10 <= segments.max() < 100
    assert not set(segments[:, :32].flatten().tolist()) & set(segments[:, 32:].flatten().tolist())


# --------------------------------------------------------------------------------------------------- randomised weights


def test_the_cascade_goes_from_head_to_first_block_and_is_undone() -> None:
    model = tiny_detector()
    before = copy.deepcopy(model.state_dict())
    changed: list[set[str]] = []
    steps = []
    with weights_put_back(model):
        for step in cascade(model, tower_of(model, lambda: model.backbone), seed=0):
            steps.append(step)
            changed.append({key for key, value in model.state_dict().items() if not torch.equal(value, before[key])})
    assert steps == ["head", *(f"encoder.layers.{i}" for i in (3, 2, 1, 0)), "embeddings and norms"]
    assert all(key.startswith("head.") for key in changed[0]) and changed[0]
    assert changed[1] - changed[0] and all("layers.3." in key for key in changed[1] - changed[0])
    weights = {key for key, value in before.items() if value.ndim > 1 and value.is_floating_point()}
    assert weights <= changed[-1]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_rank_correlation_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, 5, 5, generator=generator).mul(6).round() for _ in range(2))  # with ties
    b[3] = 1.0
    found = rank_correlation(a, b)
    for i in range(3):
        assert found[i] == pytest.approx(stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic)
    assert np.isnan(found[3])


# ----------------------------------------------------------------------------------------------------------- bootstrap


def test_intervals_resample_videos_not_frames() -> None:
    """Forty frames of each of ten videos, all frames of a video alike: the interval is that of ten values."""
    rng = np.random.default_rng(1)
    level = rng.normal(size=10)
    values = np.repeat(level, 40)[:, None]
    interval = VideoBootstrap(np.repeat(np.arange(10), 40).tolist(), seed=0).intervals(values)[0]
    expected = stats.bootstrap((level,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    assert (interval.frames, interval.videos) == (400, 10) and interval.mean == pytest.approx(level.mean())
    assert interval.low == pytest.approx(expected.low, abs=0.03) and interval.high == pytest.approx(
        expected.high, abs=0.03
    )


def test_frames_without_a_value_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    full, none = VideoBootstrap(["a", "b", "c"], seed=0).intervals(values)
    assert full.mean == 2 and full.frames == 2 and full.videos == 2 and full.low >= 1 and full.high <= 3
    assert none.frames == 0 and np.isnan(none.mean)


def test_p_values_and_holm() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 1))
    differences = np.concatenate([noise - noise.mean() + 0.4, noise - noise.mean(), np.full((60, 1), np.nan)], axis=1)
    p = VideoBootstrap(list(range(60)), seed=0).p_values(differences)
    t = stats.ttest_1samp(differences[:, 0], 0, alternative="greater").pvalue
    assert p[0] == pytest.approx(t, abs=0.002) and p[1] == pytest.approx(0.5, abs=0.03) and p[2] == 1
    # By hand: sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then the running maximum.
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.04, 0.02])), [0.06, 0.04, 0.06, 0.06])
