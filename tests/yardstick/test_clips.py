"""Maps of clips find what was forged, in time and space, on networks trained in a minute; order is read or not."""

from __future__ import annotations

import pytest
import torch

from benchmarks.yardstick.clips import (
    FRAMES,
    READERS,
    REGION,
    SIZE,
    TOWERS,
    Clips,
    chosen,
    forged,
    found_by_windows,
    hits,
    measured,
    motion,
    order_of,
    trained,
)
from utils.gradcam_kit.judge.clips.time import READS_ORDER, SINGLE_FRAMES


@pytest.fixture(scope="module")
def held_out() -> Clips:
    return forged("region", 120, 7)


def part(data: Clips, chosen: torch.Tensor) -> Clips:
    return Clips(*(one[chosen] for one in data))


def test_the_forgers_change_what_they_say_and_nothing_else() -> None:
    fake = forged("region", 8, 3)
    assert fake.label.tolist() == [1, 0] * 4 and not fake.frames[1::2].any() and not fake.region[1::2].any()
    assert (
        set(fake.frames[::2].sum(1).tolist()) <= {2, 3}
        and fake.region[::2].flatten(1).sum(1).tolist() == [REGION**2] * 4
    )
    inside = fake.frames[:, :, None, None] & fake.region[:, None]
    rough = (fake.clips[..., 1:, :] - fake.clips[..., :-1, :]).abs().mean(2)
    forged_rows = inside[..., 1:, :] & inside[..., :-1, :]
    assert rough[forged_rows].mean() > 3 * rough[~inside[..., 1:, :]].mean()
    wrong = forged("order", 8, 3)
    for i in (0, 2, 4, 6):
        places = wrong.frames[i].nonzero().flatten()
        steps = (wrong.clips[i, 1:] - wrong.clips[i, :-1]).abs().mean((1, 2, 3))
        assert len(places) == 4 and steps.argmax() in (int(places[0]) - 1, int(places[-1])), "the jump is at its edge"


def test_controls_that_know_no_detector_do_not_find_it(held_out: Clips) -> None:
    fakes = part(held_out, held_out.label == 1)
    random = torch.rand(len(fakes.clips), FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    assert hits(random, fakes)[1] < 0.4
    centre = torch.zeros(len(fakes.clips), FRAMES, SIZE, SIZE)
    centre[:, FRAMES // 2, SIZE // 2, SIZE // 2] = 1
    assert hits(centre, fakes)[1] < 0.5
    exact = fakes.frames[:, :, None, None].float() * fakes.region[:, None].float()
    assert hits(exact, fakes) == (1, 1) and motion(fakes.clips).shape == exact.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_the_hottest_frame_and_place_are_forged(name: str, held_out: Clips) -> None:
    model = trained(name, "region")
    found = measured(model, held_out, recipes=chosen(model))
    assert found.accuracy >= 0.95 and found.fakes >= 50
    assert found.frame >= 0.95 and found.both >= 0.9, found
    if name == "folded":  # the mean over frames cannot tell their order
        words = [order_of(model, forged("region", 16, 100 + seed)).word for seed in range(20)]
        assert words == [SINGLE_FRAMES] * 20


# TimeSformer takes five minutes to learn it; `python -m benchmarks.yardstick.clips` trains it as well.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in READERS if name != "timesformer"])
def test_a_network_that_tells_the_order_is_called_a_reader(name: str) -> None:
    model, wrong = trained(name, "order"), forged("order", 120, 8)
    with torch.no_grad():
        assert (model(wrong.clips).argmax(1) == wrong.label).float().mean() >= 0.9
    for data in (wrong, forged("shuffled", 120, 8)):
        assert found_by_windows(model, data, paired=True) >= 0.95
        assert found_by_windows(model, data, paired=False) >= 0.9
    assert [order_of(model, forged("order", 16, 200 + seed)).word for seed in range(20)] == [READS_ORDER] * 20
