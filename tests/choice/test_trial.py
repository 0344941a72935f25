"""Maps tried by cause, on a detector whose margin is a sum over patches, so that every fall is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge import trial as trial_module
from utils.gradcam_kit.judge import verdict
from utils.gradcam_kit.judge.choosing import _turns
from utils.gradcam_kit.judge.trial import (
    BLUR,
    MEAN_COLOUR,
    MIRRORED,
    OTHER_REAL,
    CandidateMaps,
    Scorer,
    Trial,
    fills_of,
    hottest,
    joined,
    on_trial_grid,
    passes,
    random_patches,
    replaced,
    try_candidates,
)
from utils.gradcam_kit.judge.verdict import choose, contenders

GRID, PATCH = 4, 8
SIDE = GRID * PATCH
EVIDENCE = (1, 3)  # row and column of the patch that the detector reads
RIGHT, WRONG, BLANK = (Recipe("gradcam", name, "residual", "plain") for name in ("right", "wrong", "blank"))


def pictures(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def patch_means(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) float64 → (N, 4, 4), the mean of each patch over its pixels and colours."""
    return images.reshape(-1, 3, GRID, PATCH, GRID, PATCH).mean(axis=(1, 3, 5))


def margins(images: torch.Tensor) -> torch.Tensor:
    """Ten times the mean of the evidence, as float32."""
    return 10 * images[:, :, 8:16, 24:32].mean(dim=(1, 2, 3))


def heat_at(place: tuple[int, int], count: int = 6) -> CandidateMaps:
    raw = torch.full((count, GRID, GRID), 0.1)
    raw[:, place[0], place[1]] = 1
    return CandidateMaps(raw, torch.zeros(count, dtype=torch.bool))


def test_fills_by_hand() -> None:
    images = pictures()
    exact = images.double().numpy()
    reals = pictures(2, seed=5)
    fills = fills_of(images, reals)
    assert list(fills) == [OTHER_REAL, MEAN_COLOUR, BLUR, MIRRORED]
    np.testing.assert_allclose(fills[MEAN_COLOUR][4, 1], np.full((SIDE, SIDE), exact[4, 1].mean()), atol=1e-6)
    assert torch.equal(fills[MIRRORED][2, 0, 5], images[2, 0, 5, torch.arange(SIDE - 1, -1, -1)])
    blurred = ndimage.gaussian_filter(exact[3, 2], 0.05 * SIDE, mode="mirror", radius=int(0.15 * SIDE))
    np.testing.assert_allclose(fills[BLUR][3, 2], blurred, atol=1e-6)
    assert all(torch.equal(fills[OTHER_REAL][i], reals[i % 2]) for i in range(6))
    assert list(fills_of(images)) == [MEAN_COLOUR, BLUR, MIRRORED]


def test_only_the_pixels_of_the_patches_are_replaced() -> None:
    images, fill = pictures(2), pictures(2, seed=9)
    patches = torch.zeros(2, GRID, GRID, dtype=torch.bool)
    patches[0, 1, 3] = patches[1, 0, 0] = True
    expected = images.clone()
    expected[0, :, 8:16, 24:32] = fill[0, :, 8:16, 24:32]
    expected[1, :, :8, :8] = fill[1, :, :8, :8]
    assert torch.equal(replaced(images, fill, patches), expected)


def test_the_hottest_twentieth_above_zero() -> None:
    raw = torch.arange(200, dtype=torch.float32).view(2, 10, 10)
    mask = hottest(raw, torch.tensor([False, False]))
    assert [sorted(raw[i][mask[i]].tolist()) for i in range(2)] == [[95, 96, 97, 98, 99], [195, 196, 197, 198, 199]]
    few = torch.zeros(1, 10, 10)
    few[0, 2, 2] = 3
    assert hottest(few, torch.tensor([False])).nonzero().tolist() == [[0, 2, 2]]
    assert not hottest(few, torch.tensor([True])).any()


def test_a_fine_map_is_averaged() -> None:
    raw = torch.arange(64 * 64, dtype=torch.float32).view(1, 64, 64)
    assert float(on_trial_grid(raw)[0, 0, 1]) == np.mean([2, 3, 66, 67]) and on_trial_grid(raw).shape == (1, 32, 32)


def test_random_patches_are_as_many_and_the_same_every_time() -> None:
    drawn = random_patches(500, (10, 10), seed=3)
    assert (drawn.flatten(1).sum(dim=1) == 5).all()
    assert torch.equal(drawn, random_patches(500, (10, 10), seed=3))
    share = drawn.float().mean(dim=0)  # 0.05 with a standard deviation of 0.01
    assert float(share.min()) > 0.01 and float(share.max()) < 0.09


def test_falls_are_what_the_evidence_is_worth() -> None:
    images = pictures()
    exact = patch_means(images.double().numpy())[:, EVIDENCE[0], EVIDENCE[1]]
    grey = images.double().numpy().mean(axis=(1, 2, 3))
    flipped = patch_means(images.double().numpy()[..., ::-1])[:, EVIDENCE[0], EVIDENCE[1]]
    maps = {
        RIGHT: heat_at(EVIDENCE),
        WRONG: heat_at((0, 0)),
        BLANK: CandidateMaps(torch.ones(6, 4, 4), torch.ones(6) > 0),
    }
    fills = {name: fill for name, fill in fills_of(images).items() if name != BLUR}
    trial = try_candidates(images, maps, fills, Scorer(margins, torch.ones(6)))
    np.testing.assert_allclose(trial.margins, 10 * exact, rtol=1e-5)
    np.testing.assert_allclose(trial.drops[MEAN_COLOUR][RIGHT], 10 * (exact - grey), atol=1e-5)
    np.testing.assert_allclose(trial.drops[MIRRORED][RIGHT], 10 * (exact - flipped), atol=1e-5)
    for name in fills:
        assert not trial.drops[name][WRONG].any() and not trial.drops[name][BLANK].any()
    hit = random_patches(6, (4, 4), seed=0)[:, EVIDENCE[0], EVIDENCE[1]].numpy()
    np.testing.assert_allclose(trial.random[MEAN_COLOUR][WRONG], 10 * (exact - grey) * hit, atol=1e-5)
    moved = abs(np.sort(10 * (exact - grey) * hit)[2]) / (10 * exact).mean()  # the lower of the two in the middle
    assert trial.moved[MEAN_COLOUR] == pytest.approx(moved, abs=1e-6)


def test_where_real_is_explained_the_margin_is_turned_round() -> None:
    images = pictures()
    maps = {RIGHT: heat_at(EVIDENCE)}
    fake, real = (
        try_candidates(images, maps, fills_of(images), Scorer(margins, sign * torch.ones(6))) for sign in (1, -1)
    )
    assert torch.equal(fake.margins, -real.margins)
    for name, falls in fake.drops.items():
        torch.testing.assert_close(falls[RIGHT], -real.drops[name][RIGHT])


def test_of_several_fills_the_first_two_that_leave_the_margin_alone_are_used() -> None:
    images = pictures()
    maps, scorer = {RIGHT: heat_at(EVIDENCE)}, Scorer(margins, torch.ones(6))
    fills = {"loud": torch.full_like(images, 50.0), **{str(i): images.clone() for i in range(3)}}
    half = Scorer(lambda batch: batch.mean(dim=(1, 2, 3)), torch.ones(6))
    assert list(try_candidates(images, maps, fills, half).drops) == ["0", "1"]
    assert list(try_candidates(images, maps, fills, scorer, "2").drops) == ["2"]


def test_where_none_does_the_two_that_move_it_least_are_used() -> None:
    images = pictures()
    loud = torch.full_like(images, 50.0)
    half = torch.full_like(images, 5.0)
    fills = {"loud": loud, "half": half, MEAN_COLOUR: fills_of(images)[MEAN_COLOUR]}
    everywhere = Scorer(lambda batch: batch.mean(dim=(1, 2, 3)), torch.ones(6))
    trial = try_candidates(images, {RIGHT: heat_at(EVIDENCE)}, fills, everywhere)
    assert list(trial.drops) == [MEAN_COLOUR, "half"] and trial.moved["loud"] > trial.moved["half"] > 0.1


def test_the_number_of_passes_is_the_one_announced() -> None:
    seen = 0

    def counted(batch: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(batch)
        return margins(batch)

    images = pictures()
    maps = {RIGHT: heat_at(EVIDENCE), WRONG: heat_at((0, 0)), BLANK: heat_at((3, 3))}
    try_candidates(images, maps, fills_of(images, images), Scorer(counted, torch.ones(6)))
    assert seen == passes(6, 3, 4) == 6 * (1 + 4 + 2 * 3)


def test_what_masks_share_is_asked_once_and_every_batch_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "AT_ONCE", 4)
    sizes: list[int] = []

    def counted(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return margins(batch)

    images, direction = pictures(), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    fill, before = images.flip(0), margins(images) * direction
    masks = [torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.2 for seed in range(3)]
    masks.append(torch.cat([masks[0][:3], masks[1][3:]]))  # nothing new
    found = Scorer(counted, direction).drops(before, images, fill, masks)
    assert sizes == [4, 4, 4, 4, 2]  # 3 · 6 different ones
    for drops, mask in zip(found, masks, strict=True):
        for i in range(6):
            pixels = np.kron(mask[i].numpy(), np.ones((images.shape[2] // 8, images.shape[3] // 8))) > 0
            changed = torch.from_numpy(np.where(pixels, fill[i].numpy(), images[i].numpy()))
            expected = before[i] - direction[i] * margins(changed[None])[0]
            assert float(drops[i]) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


# ------------------------------------------------------------------------------------------------- ending a trial early

BEYOND, EIGHT = torch.tensor([4.0, 5.0, 6.0, 5.0, 4.0, 6.0, 5.0, 5.0]), list("abcdefgh")


def trial_of(**beyond: torch.Tensor) -> Trial:
    """By one fill; random patches cost nothing."""
    drops = {Recipe("gradcam", name): values for name, values in beyond.items()}
    count = len(next(iter(drops.values())))
    nothing = {one: torch.where(values.isnan(), values, torch.zeros(count)) for one, values in drops.items()}
    return Trial(count, torch.full((count,), 10.0), {MEAN_COLOUR: 0.0}, {MEAN_COLOUR: drops}, {MEAN_COLOUR: nothing})


def left(trial: Trial, *named: str, videos: list[str] = EIGHT) -> list[str]:
    candidates = list(trial.drops[MEAN_COLOUR])
    return [one.layer for one in contenders(trial, candidates, [Recipe("gradcam", name) for name in named], videos)]


def test_a_trial_goes_on_with_those_that_may_still_win() -> None:
    wavering = BEYOND + torch.tensor([2.0, -2.0, 1.0, -1.0, 1.5, -1.5, 0.5, -0.6])
    preferred = trial_of(alike=0.97 * BEYOND, worse=0.7 * BEYOND, best=BEYOND, later=0.97 * BEYOND, wavering=wavering)
    assert left(preferred) == ["alike", "best", "wavering"]
    assert left(trial_of(best=BEYOND, worse=0.7 * BEYOND)) == []
    assert left(trial_of(best=BEYOND, worse=0.7 * BEYOND), videos=list("aabbccdd")) == ["best", "worse"]
    assert left(trial_of(best=wavering - 5, worse=wavering - 6)) == ["best", "worse"]  # none above random for certain


@pytest.mark.parametrize(("share", "settled"), [(0.2, True), (0.5, False), (0.8, True)])
def test_a_named_map_is_settled_on_either_side_of_half_of_the_best(share: float, settled: bool) -> None:
    named = share * BEYOND + torch.tensor([0.3, -0.3, 0.2, -0.2, 0.1, -0.1, 0.2, -0.2])
    assert (left(trial_of(best=BEYOND, mine=named, alike=BEYOND - 0.01), "mine") == []) == settled


def test_who_would_be_taken_is_hardly_ever_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look may cost: in 300 trials of five candidates worth the same, the first of which is to be taken."""
    monkeypatch.setattr(verdict, "CLOSE", np.inf)  # no trial ends because what is left is close
    random = np.random.default_rng(0)
    out = 0
    for _ in range(300):
        image = random.normal(5, 1, 8)
        beyond = {f"c{i}": torch.tensor(image + random.normal(0, 1, 8)).float() for i in range(5)}
        best = max(beyond, key=lambda name: float(beyond[name].mean()))
        kept = left(trial_of(**beyond)) or [best]
        out += "c0" not in kept
    assert out / 300 < 0.05


def test_a_trial_ends_once_what_would_be_drawn_is_nearly_the_best() -> None:
    assert left(trial_of(alike=0.97 * BEYOND, best=BEYOND, later=1.02 * BEYOND)) == []
    shifted = BEYOND + torch.tensor([1.5, -1.5, 1.5, -1.5, 1.0, -1.0, 1.0, -1.0])
    assert left(trial_of(alike=0.97 * BEYOND, best=shifted)) == ["alike", "best"]  # too few images to say so


def test_what_is_drawn_after_an_early_end_is_hardly_ever_much_worse() -> None:
    """In 300 trials of five candidates of known worth: a trial that ends has at least CLOSE of the best."""
    random = np.random.default_rng(0)
    ended = worse = 0
    for _ in range(300):
        worths = dict(zip("abcde", random.permutation([5.0, 4.75, 4.5, 4.0, 3.0]), strict=True))
        image = random.normal(0, 1, 8)
        beyond = {
            name: torch.tensor(worth + image + random.normal(0, 0.5, 8)).float() for name, worth in worths.items()
        }
        if not left(trial_of(**beyond)):
            ended += 1
            means = {name: float(values.mean()) for name, values in beyond.items()}
            drawn = next(name for name in "abcde" if means[name] >= 0.95 * max(means.values()))
            worse += worths[drawn] < 0.85 * 5.0
    assert ended > 100 and worse / ended < 0.05, (ended, worse)


def test_turns_are_joined_and_who_was_left_out_cannot_win() -> None:
    first = trial_of(best=BEYOND, lucky=1.5 * BEYOND)
    second = trial_of(best=0.1 * BEYOND)
    trial = joined([first, second])
    lucky, best = (trial.drops[MEAN_COLOUR][Recipe("gradcam", name)] for name in ("lucky", "best"))
    assert trial.images == 16 and lucky[:8].equal(1.5 * BEYOND) and lucky[8:].isnan().all()
    torch.testing.assert_close(best, torch.cat([BEYOND, 0.1 * BEYOND]))
    choice = choose(trial, list(trial.drops[MEAN_COLOUR]), [], [*EIGHT, *"ijklmnop"], {})
    assert choice.used.layer == "best" and choice.rows[0].candidate.layer == "best"
    assert choice.rows[1].beyond.mean == pytest.approx(float(1.5 * BEYOND.mean()))


def test_every_image_has_one_turn_and_each_turn_is_spread_over_all() -> None:
    for count in (0, 3, 8, 15, 16, 24, 32, 100):
        turns = [turn.tolist() for turn in _turns(count)]
        assert sorted(i for turn in turns for i in turn) == list(range(count))
        if count >= 16:
            assert len(turns[0]) == 8 and turns[0][0] == 0 and turns[0][-1] >= 7 * (count // 8)
    assert [len(turn) for turn in _turns(32)] == [8, 8, 16] and [len(turn) for turn in _turns(16)] == [8, 8]
