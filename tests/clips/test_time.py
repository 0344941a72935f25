"""Cause in time, on margins of which everything is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.clips.towers import FRAMES, clips_of_noise, tower
from utils.gradcam import Recipe, explain
from utils.gradcam_kit.explaining.clips.checking import margins_of
from utils.gradcam_kit.explaining.clips.choosing import choose_clip_map, clip_candidates
from utils.gradcam_kit.explaining.clips.explanation import ClipExplanation
from utils.gradcam_kit.explaining.clips.subject import clip_subject_of
from utils.gradcam_kit.judge.clips.time import (
    READS_ORDER,
    SINGLE_FRAMES,
    UNCLEAR,
    Change,
    OrderTest,
    RealClips,
    check_frames,
    cost_of_frames,
    freeze,
    hottest_frames,
    order_test,
    random_frames,
    replace_frames,
)
from utils.gradcam_kit.judge.clips.trial import frozen_cells, mean_coloured_cells, try_clip_maps
from utils.gradcam_kit.judge.clips.windows import cost_of_windows, sorted_window
from utils.gradcam_kit.judge.trial import CandidateMaps, Scorer
from utils.gradcam_kit.judge.verdict import choose


def numbered(count: int, frames: int) -> Tensor:
    """Clips (count, frames, 1) whose frames are their numbers, clip after clip."""
    return torch.arange(float(count * frames)).view(count, frames, 1)


def test_a_frozen_frame_is_the_nearest_kept_one() -> None:
    clips = numbered(2, 6)
    replaced = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    frozen = freeze(clips, replaced)[..., 0]
    assert frozen[0].tolist() == [0, 0, 3, 3, 4, 4]
    assert frozen[1].tolist() == [6, 7, 8, 9, 10, 11], "nothing is kept, so nothing is replaced"
    middle = torch.tensor([[0, 1, 0]], dtype=torch.bool)
    assert freeze(numbered(1, 3), middle)[0, :, 0].tolist() == [0, 0, 2], "of two the earlier"


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (8, 1), (9, 2), (16, 2), (32, 4)])
def test_an_eighth_of_the_frames_is_replaced(frames: int, count: int) -> None:
    time = torch.randn(3, frames, generator=torch.Generator().manual_seed(0))
    hot = hottest_frames(time)
    assert hot.sum(1).tolist() == [count] * 3
    for i in range(3):
        assert set(hot[i].nonzero().flatten().tolist()) == set(sorted(range(frames), key=lambda t: -time[i, t])[:count])
    drawn = random_frames(hot, [3, 4, 5], 0)
    assert drawn.sum(1).tolist() == [count] * 3 and torch.equal(drawn[1:2], random_frames(hot[1:2], [4], 0))


def evidence_of_frame_two(clips: Tensor) -> Tensor:
    return 10 * clips[:, 2, 0] + 0.01 * clips[:, :, 0].sum(1)


def test_a_map_of_the_right_frame_is_supported_and_of_another_not() -> None:
    clips = torch.zeros(2, 8, 1)
    clips[:, 2] = 1
    right, wrong = torch.zeros(2, 8), torch.zeros(2, 8)
    right[:, 2], wrong[:, 6] = 1, 1
    none = torch.tensor([False, True])
    found = check_frames(evidence_of_frame_two, clips, right, none, ["fake", "fake"], [1, 2])
    assert [check.word for check in found] == ["supported", "artefact"]
    assert found[0].fall == pytest.approx(10.01) and found[0].margin == pytest.approx(10.01)
    (other, _) = check_frames(evidence_of_frame_two, clips, wrong, none, ["fake", "fake"], [1, 2])
    assert other.word in ("weak", "contradicted") and other.fall == pytest.approx(0)
    (real, _) = check_frames(lambda some: -evidence_of_frame_two(some), clips, right, none, ["real", "real"], [1, 2])
    assert real.word == "supported" and real.fall == pytest.approx(10.01), "towards the class that is explained"


def test_what_each_frame_costs() -> None:
    clips = torch.zeros(1, 8, 1)
    clips[:, 2] = 1
    cost = cost_of_frames(evidence_of_frame_two, clips)
    assert cost[0].tolist() == pytest.approx([0, 0, 10.01, -0.01, 0, 0, 0, 0], abs=1e-5), "frame 3 becomes frame 2"


def test_frames_of_the_real_clip_replace_those_whose_pair_is_known() -> None:
    clips = numbered(2, 4).view(2, 4, 1, 1, 1)
    reals = RealClips(-clips, torch.tensor([True, False]))
    replaced = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    assert replace_frames(clips, replaced, reals).flatten(1).tolist() == [[0, -1, 2, 3], [4, 4, 6, 7]]
    every = torch.ones(2, 4, dtype=torch.bool)
    assert replace_frames(clips, every, reals).flatten(1).tolist() == [[0, -1, -2, -3], [4, 5, 6, 7]]


def test_only_the_real_clip_shows_evidence_that_is_in_all_frames() -> None:
    """Freezing a frame changes nothing where all are forged alike."""
    clips, time, none = torch.ones(1, 8, 1, 1, 1), torch.zeros(1, 8), torch.tensor([False])
    clips[:, 2], time[:, 2] = 3, 1

    def margins(some: Tensor) -> Tensor:
        return some.flatten(1).sum(1)

    reals = RealClips(torch.zeros_like(clips), torch.tensor([True]))
    (frozen,) = check_frames(margins, clips, time, none, ["fake"], [1])
    (exchanged,) = check_frames(margins, clips, time, none, ["fake"], [1], reals)
    assert frozen.fall == pytest.approx(2) and exchanged.fall == pytest.approx(3)
    assert cost_of_frames(margins, clips, reals)[0].tolist() == [1, 1, 3, 1, 1, 1, 1, 1]


def test_a_window_is_sorted_by_likeness() -> None:
    clips = torch.tensor([[0.0, 1, 4, 3, 2, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
    apart = (clips[:, :, None] - clips[:, None, :]).abs()
    order = sorted_window(apart, 2, 5)
    assert clips.gather(1, order).tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    assert order[1].tolist() == list(range(7)), "in order already"
    assert sorted_window(apart, 1, 4)[0].tolist() == list(range(7)), "of equal orders the given one"


@pytest.mark.parametrize("paired", [True, False])
def test_what_repairing_windows_costs(paired: bool) -> None:
    """A margin that counts jumps; every window by a loop of its own."""
    right = torch.arange(7.0)
    wrong = right[[0, 1, 4, 3, 2, 5, 6]]

    def jumps(clips: Tensor) -> Tensor:
        return (clips.flatten(1).diff(dim=1) - 1).abs().sum(1)

    clips, frames = wrong.view(1, 7, 1, 1, 1), 7
    drops: dict[tuple[int, int], float] = {}
    for start, stop in itertools.combinations(range(frames + 1), 2):
        if stop - start > 6:
            continue
        orders = [list(one) for one in itertools.permutations(wrong[start:stop].tolist())]
        ways = [wrong[:start].tolist() + one + wrong[stop:].tolist() for one in orders]
        best = min(ways, key=lambda way: sum(abs(b - a) for a, b in itertools.pairwise(way)))
        repaired = torch.cat([wrong[:start], right[start:stop], wrong[stop:]]) if paired else torch.tensor(best)
        drops[start, stop] = (jumps(clips) - jumps(repaired.view(1, 7))).item()
    expected = []
    for t in range(frames):
        within = [drop for (start, stop), drop in drops.items() if start <= t < stop]
        without = [drop for (start, stop), drop in drops.items() if not start <= t < stop]
        expected.append(sum(within) / len(within) - sum(without) / len(without))
    both, known = clips.repeat(2, 1, 1, 1, 1), torch.tensor([paired, not paired])
    found = cost_of_windows(jumps, both, RealClips(right.view(1, 7, 1, 1, 1).repeat(2, 1, 1, 1, 1), known))[0].tolist()
    if not paired:
        assert cost_of_windows(jumps, clips)[0].tolist() == found
    assert found == pytest.approx(expected, abs=1e-5) and found.index(max(found)) in (2, 3, 4)


def weighted(weights: Tensor) -> torch.nn.Module:
    class Weighted(torch.nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return (clips[..., 0] * weights).sum(1)

    return Weighted()


def noise(videos: int, frames: int = 8) -> Tensor:
    return torch.randn(videos, frames, 1, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("seed", range(20))
def test_a_mean_over_frames_reads_single_frames(seed: int) -> None:
    clips = torch.randn(8, 8, 1, generator=torch.Generator().manual_seed(seed))
    found = order_test(weighted(torch.full((8,), 1 / 8)), clips, range(8), seed)
    assert found.word == SINGLE_FRAMES and not found.freezing_costs_nothing


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_of_frames_reads_their_order(seed: int) -> None:
    clips = torch.randn(8, 8, 1, generator=torch.Generator().manual_seed(seed))
    weights = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    assert order_test(weighted(weights), clips, range(8), seed).word == READS_ORDER


def test_freezing_costs_nothing_where_all_frames_are_alike() -> None:
    clips = noise(6)[:, :1].expand(6, 8, 1).contiguous()
    found = order_test(weighted(torch.full((8,), 1 / 8)), clips, range(6))
    assert found.freezing_costs_nothing and found.frozen.mean == pytest.approx(0, abs=1e-6)
    assert any("time curves are grey" in line for line in found.lines())


def test_one_video_decides_nothing() -> None:
    found = order_test(weighted(torch.ones(8)), noise(2), ["a", "a"])
    assert found.order.low == 0 and math.isinf(found.order.high) and found.word == UNCLEAR
    between = OrderTest(order=Change(0.03, 0.01, 0.05), frozen=Change(1.0, 0.5, 1.5), clips=3, videos=3)
    assert between.word == UNCLEAR and "not clear from so few clips" in between.lines()[0]


@pytest.mark.parametrize(("family", "blind"), [("folded", True), ("volume", False), ("timesformer", False)])
def test_of_networks(family: str, blind: bool) -> None:
    found = explain(tower(family), clips_of_noise(6), clip_layout="btchw")
    assert isinstance(found, ClipExplanation), "of clips"
    assert (found.order_test().word == SINGLE_FRAMES) is blind
    (checks,) = found.check().values()
    assert len(checks) == 6 and {check.word for check in checks} <= {"supported", "weak", "contradicted"}
    assert found.cost().shape == found.cost_of_windows().shape == (6, FRAMES)


# ------------------------------------------------------------------------------------------------------------ the choice


def test_a_cell_becomes_the_same_place_of_the_nearest_frame_that_keeps_it() -> None:
    clips = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 4, 4) + torch.zeros(1, 4, 3, 4, 4)
    replaced = torch.zeros(1, 4, 2, 2, dtype=torch.bool)
    replaced[0, 1:3, 0, 0] = True
    replaced[0, :, 1, 1] = True
    frozen = frozen_cells(clips, replaced)[0, :, 0]
    assert [frozen[t, 0, 0].item() for t in range(4)] == [0, 0, 3, 3]
    assert [frozen[t, 3, 3].item() for t in range(4)] == [0, 1, 2, 3], "no frame keeps it"
    assert torch.equal(frozen[:, :2, 2:], clips[0, :, 0, :2, 2:])
    mean = mean_coloured_cells(clips, replaced)[0, :, 0]
    assert mean[1, 0, 0] == 1.5 and mean[0, 0, 0] == 0 and mean[2, 3, 3] == 1.5


def test_the_map_of_the_cells_that_decide_is_chosen() -> None:
    """Evidence is the brightness of one place in frame 2; one map shows it, one another place, one the other frames."""

    def margins(clips: Tensor) -> Tensor:
        return clips[:, 2, 0, :4, :4].mean((1, 2)) - 0.1

    clips = 0.2 * torch.rand(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clips[:, 2, :, :4, :4] += 1
    right, place, frame = (torch.zeros(6, 4, 2, 2) for _ in range(3))
    right[:, 2, 0, 0], place[:, 2, 1, 1], frame[:, 0, 0, 0] = 1, 1, 1
    none = torch.zeros(6, dtype=torch.bool)
    recipes = {Recipe("gradcam", "a"): place, Recipe("hirescam", "a"): frame, Recipe("layercam", "a"): right}
    maps = {recipe: CandidateMaps(raw, none) for recipe, raw in recipes.items()}
    trial = try_clip_maps(clips, maps, Scorer(margins, torch.ones(6)))
    drop = trial.drops["the nearest frame"][Recipe("layercam", "a")]
    torch.testing.assert_close(drop, clips[:, 2, 0, :4, :4].mean((1, 2)) - clips[:, 1, 0, :4, :4].mean((1, 2)))
    choice = choose(trial, list(maps), [], range(6), {})
    assert choice.state == "chosen" and choice.used == Recipe("layercam", "a")


def test_a_network_chooses_among_its_maps() -> None:
    model, clips = tower("volume"), clips_of_noise(6)
    subject = clip_subject_of(model, clips, layout="btchw")
    choice = choose_clip_map(subject, margins_of(subject, 4), clips, "fake", range(6))
    assert {row.candidate.method for row in choice.rows} == {"gradcam", "hirescam", "layercam"}
    assert choice.images == 6 and choice.fills == ("the nearest frame", "mean colour")
    videomae = clip_subject_of(tower("videomae"), clips)
    kinds = {(one.method, one.backward, one.layer) for one in clip_candidates(videomae)}
    assert ("hirescam", "balanced", "encoder.layer.1") in kinds and len(kinds) == 5
