"""From falls to a choice, on falls written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.trial import Trial
from utils.gradcam_kit.judge.verdict import (
    CHOSEN,
    NAMED,
    UNDECIDED,
    UNSUPPORTED,
    Choice,
    choice_lines,
    choose,
    headline,
    interval,
    judgements,
)

A, B, C = (Recipe("gradcam", name, "residual", "plain") for name in "abc")
VIDEOS = ["p", "p", "q", "q", "r", "r", "s", "s"]
NOISE = torch.tensor([0.1, 0.1, -0.1, -0.1, 0.2, 0.2, -0.2, -0.2])


def trial(falls: dict[str, dict[Recipe, float]], moved: dict[str, float] | None = None) -> Trial:
    """Falls that spread a little about the given means; random patches cost 0.5 on average."""
    of_fill = {fill: {one: mean + NOISE for one, mean in by.items()} for fill, by in falls.items()}
    random = {fill: dict.fromkeys(by, 0.5 + 0 * NOISE) for fill, by in falls.items()}
    return Trial(8, torch.full((8,), 10.0), moved or dict.fromkeys(falls, 0.01), of_fill, random)


def chosen(tried: Trial, named: Sequence[Recipe] = (), videos: Sequence[str] = VIDEOS) -> Choice:
    return choose(tried, [A, B, C], named, videos, {})


def test_the_largest_fall_beyond_random_wins() -> None:
    choice = chosen(trial({"mean": {A: 2.5, B: 6.5, C: 0.5}, "mirror": {A: 2.0, B: 7.5, C: 0.5}}))
    assert (choice.state, choice.used) == (CHOSEN, B) and choice.best is not None and choice.best.candidate == B
    row = choice.row(A)
    assert row is not None and (row.share, row.second) == pytest.approx((2.0 / 6.0, 1.5 / 7.0))
    assert (row.fall, row.random) == pytest.approx((2.5, 0.5)) and row.beyond.mean == pytest.approx(2.0)
    assert (choice.images, choice.videos, choice.margin) == (8, 4, 10.0)


def test_of_candidates_that_are_as_good_the_first_on_the_list() -> None:
    assert chosen(trial({"mean": {A: 6.3, B: 6.5, C: 5.0}, "mirror": {A: 5.0, B: 6.5, C: 5.0}})).used == A
    assert chosen(trial({"mean": {A: 6.0, B: 6.5, C: 5.0}, "mirror": {A: 6.5, B: 6.1, C: 5.0}})).used == B


def test_fills_that_do_not_agree_leave_it_undecided() -> None:
    choice = chosen(trial({"mean": {A: 6.5, B: 3.5, C: 0.5}, "mirror": {A: 3.4, B: 6.5, C: 0.5}}))
    assert choice.state == UNDECIDED and choice.reason == "the fills mean and mirror do not agree on one map"


def test_a_fill_that_speaks_for_a_class_leaves_it_undecided() -> None:
    falls = {"mean": {A: 6.5, B: 3.5, C: 0.5}, "blur": {A: 6.5, B: 3.5, C: 0.5}}
    choice = chosen(trial(falls, {"mean": 0.01, "blur": 0.3}))
    assert (choice.state, choice.used) == (UNDECIDED, A)
    assert choice.reason == "random patches filled by blur change the score too"


def test_the_paired_real_needs_no_second_fill() -> None:
    choice = chosen(trial({"paired real": {A: 6.5, B: 3.5, C: 0.5}}, {"paired real": 0.3}))
    assert (choice.state, choice.used, choice.fills) == (CHOSEN, A, ("paired real",))


def test_no_map_above_random_is_unsupported() -> None:
    choice = chosen(trial({"mean": {A: 0.5, B: 0.52, C: 0.3}, "mirror": {A: 0.5, B: 0.52, C: 0.3}}))
    assert (choice.state, choice.used) == (UNSUPPORTED, A) and "no test shows that its maps are right" in headline(
        choice
    )


@pytest.mark.parametrize("videos", [["p"] * 8, list("pqr")])
def test_too_few_images_or_videos_choose_nothing(videos: list[str]) -> None:
    falls = {"mean": {A: 0.5, B: 6.5}, "mirror": {A: 0.5, B: 6.5}}
    tried = trial(falls)
    count = len(videos)
    part = Trial(
        count,
        tried.margins[:count],
        tried.moved,
        {fill: {one: values[:count] for one, values in by.items()} for fill, by in tried.drops.items()},
        {fill: {one: values[:count] for one, values in by.items()} for fill, by in tried.random.items()},
    )
    choice = choose(part, [A, B], [], videos, {})
    assert (choice.state, choice.used) == (UNDECIDED, A) and f"images: {count}" in choice.reason


def test_candidates_without_maps_are_passed_over() -> None:
    choice = choose(trial({"mean": {B: 0.5, C: 0.4}}), [A, B, C], [], VIDEOS, {A: "no attention"})
    assert (choice.state, choice.used) == (UNSUPPORTED, B) and choice.unmade == {str(A): "no attention"}


# ------------------------------------------------------------------------------------------------------ named by hand


def test_a_named_map_is_drawn_and_judged() -> None:
    falls = {A: 6.5, B: 3.3, C: 0.5}
    tried = trial({"mean": falls, "mirror": falls})
    for named, sentence in ((A, ""), (B, "shows little"), (C, "shows nothing")):
        choice = chosen(tried, [named])
        assert (choice.state, choice.used) == (NAMED, named)
        lines = judgements(choice)
        assert len(lines) == bool(sentence)
        if sentence:
            assert sentence in lines[0] and "--gradcam_method auto" in lines[0]
            assert f"by {falls[named]:.2f}" in lines[0] and "by 6.50" in lines[0]
    assert judgements(chosen(trial({"mean": {A: 6.5, B: 3.6}, "mirror": {A: 6.5, B: 3.6}}), [B])) == []  # 0.52


def test_what_is_chosen_is_not_judged() -> None:
    assert judgements(chosen(trial({"mean": {A: 6.5, B: 3.5}, "mirror": {A: 6.5, B: 3.5}}))) == []


# -------------------------------------------------------------------------------------------------- intervals, files


def test_intervals_over_videos() -> None:
    """Two videos: a resample holds one of them twice (a quarter each) or both, so the ends are the videos' means."""
    found = interval(torch.tensor([1.0, 3.0, 8.0, 8.0]), ["p", "p", "q", "q"])
    assert found == (5.0, 2.0, 8.0)
    alone = interval(torch.tensor([1.0, 3.0]), ["p", "p"])
    assert alone.mean == 2.0 and math.isnan(alone.low) and math.isnan(alone.high)


def test_intervals_are_those_of_numpy() -> None:
    """Against NumPy's own resampling of 40 videos of one image: within what 2,000 resamples leave open."""
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 40)
    means = values[rng.integers(0, 40, (50_000, 40))].mean(axis=1)
    found = interval(torch.tensor(values), list(range(40)))
    np.testing.assert_allclose(found[1:], np.quantile(means, [0.025, 0.975]), atol=0.06)


def test_a_choice_comes_back_from_json() -> None:
    choice = chosen(trial({"mean": {A: 2.5, B: 6.5, C: 0.5}, "mirror": {A: 2.0, B: 7.5, C: 0.5}}))
    assert Choice.from_json(json.loads(json.dumps(choice.to_json(), allow_nan=False))) == choice
    alone = chosen(trial({"mean": {A: 2.5, B: 6.5, C: 0.5}}), videos=["p"] * 8)
    text = json.dumps(alone.to_json(), allow_nan=False)
    assert json.dumps(Choice.from_json(json.loads(text)).to_json()) == text


def test_the_printed_table_shows_the_best_and_what_is_drawn() -> None:
    others = [Recipe("gradcam", f"block{i}", "residual", "plain") for i in range(8)]
    falls = {**{one: 9.0 - i for i, one in enumerate(others)}, A: 0.6}
    lines = choice_lines(choose(trial({"mean": falls, "mirror": falls}), [*others, A], [A], VIDEOS, {}))
    assert len(lines) == 1 + 5 + 1 and "block0" in lines[1] and str(A) in lines[-1]


def test_the_printed_lines_say_by_what_and_why_not_the_first() -> None:
    lines = choice_lines(chosen(trial({"paired real": {A: 6.3, B: 6.5, C: 5.0}})))
    assert "replaced by those of the paired real image, on 8 images" in lines[0] and str(B) in lines[1]
    assert lines[-1].strip() == "candidates within 5% of the largest drop count as equal; the preferred one is drawn"
    assert "equal" not in " ".join(choice_lines(chosen(trial({"paired real": {A: 6.5, B: 3.5, C: 0.5}}))))
