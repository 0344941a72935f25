"""The word of a single map: by figures written by hand, and on a detector whose evidence is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.detectors import BLOCKS
from tests.helpers.references.known_evidence import (
    EVIDENCE,
    FAKE_LEVEL,
    GRID,
    evidence_detector,
    flat_image,
    normalised,
)
from utils.gradcam_kit.base.typed import Misfit, builtins, fit
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.check import (
    ARTEFACT,
    SUPPORTED,
    WEAK,
    Checked,
    MapCheck,
    Voters,
    block_voters,
    check_maps,
    support,
    word_of,
)
from utils.gradcam_kit.judge.choosing import TriedDetector, in_batches
from utils.gradcam_kit.judge.trial import MEAN_COLOUR, Heat, random_patches


@pytest.mark.parametrize(
    ("fall", "random", "votes", "word"),
    [
        (2.5, 0.0, 1.0, SUPPORTED),  # a clear fall, and the blocks agree
        (2.5, 0.0, 0.25, SUPPORTED),
        (2.5, 0.0, 0.0, WEAK),  # no block agrees
        (2.5, 0.5, 0.25, WEAK),  # 0.2 of the margin beyond random: some, but not clear
        (1.0, 0.5, 0.5, SUPPORTED),
        (0.5, 0.5, 1.0, WEAK),  # nothing beyond random, but agreement
        (0.5, 0.5, 0.0, ARTEFACT),
        (-3.0, 0.0, 0.25, WEAK),
        (-3.0, 0.0, 0.0, ARTEFACT),
        (2.5, 0.0, None, SUPPORTED),  # no balanced maps: the fall alone
        (0.5, 0.0, None, WEAK),
        (0.4, 0.0, None, ARTEFACT),
    ],
)
def test_the_word(fall: float, random: float, votes: float | None, word: str) -> None:
    assert word_of(fall, random, 10.0, votes) == word
    assert word_of(fall, random, -10.0, votes) == word  # images on the wrong side of the decision
    assert word_of(fall, random, 10.0, votes, empty=True) == ARTEFACT


def test_a_margin_of_zero_leaves_the_votes_alone() -> None:
    assert [word_of(5.0, 0.0, 0.0, votes) for votes in (1.0, 0.1, None)] == [WEAK, ARTEFACT, ARTEFACT]
    assert [support(5.0, 0.0, 0.0, votes) for votes in (0.75, None)] == [0.75, 0.0]


def test_the_number_behind_the_word() -> None:
    assert support(2.5, 0.0, 10.0, 1.0) == 1.0 and support(9.0, 0.0, 10.0, 0.5) == 0.75
    assert support(1.0, 0.0, 10.0, 0.5) == pytest.approx((0.4 + 0.5) / 2) and support(-1.0, 0.0, 10.0, None) == 0.0


def detector(model: Any) -> TriedDetector:
    def margins(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = model({"image": images})["cls"]
        return logits[:, 1] - logits[:, 0]

    def capture(images: torch.Tensor, target: list[str], recipes: list[Recipe]) -> Any:
        return model.as_subject().capture({"image": images}, recipes, list(target))

    return TriedDetector(capture, margins, in_batches(4))


def heat_at(place: tuple[int, int], count: int) -> Heat:
    raw = torch.full((count, GRID, GRID), 0.1)
    raw[:, place[0], place[1]] = 1.0
    return Heat(raw, torch.zeros(count, dtype=torch.bool))


def test_checks_of_a_right_and_of_a_wrong_map() -> None:
    model = evidence_detector()
    images = torch.cat([normalised(flat_image(level)) for level in (FAKE_LEVEL, FAKE_LEVEL + 4)])
    tried = detector(model)
    margins = tried.margins(images)
    checked = Checked(images, ["fake", "fake"], margins, [4, 5])
    voters = Voters(block_voters([f"encoder.layers.{i}" for i in range(BLOCKS)]), [])
    maps = {"right": heat_at(EVIDENCE, 2), "wrong": heat_at((3, 0), 2)}
    checks = check_maps(tried, checked, maps, "gradcam", MEAN_COLOUR, voters)
    grey = images.clone()
    rows, columns = (slice(16 * place, 16 * place + 16) for place in EVIDENCE)
    for image, whole in zip(grey, images, strict=True):
        image[:, rows, columns] = float(whole.double().mean())
    falls = margins - tried.margins(grey)
    for i in range(2):
        right, wrong = checks["right"][i], checks["wrong"][i]
        assert right.fall == pytest.approx(float(falls[i]), rel=1e-4) and right.word == SUPPORTED
        assert abs(wrong.fall) < 1e-3 * right.fall and wrong.word != SUPPORTED
        hit = bool(random_patches(1, (GRID, GRID), 4 + i)[0, EVIDENCE[0], EVIDENCE[1]])
        assert right.random == pytest.approx(float(falls[i]) * hit, abs=1e-3 * float(falls[i]))
        assert right.mass == pytest.approx((15 * 0.1 + 1) / float(margins[i]), rel=1e-4)
        assert right.votes is not None and wrong.votes is not None and right.votes > wrong.votes
        assert right.others is None and fit(json.loads(json.dumps(builtins(right))), MapCheck) == right


def test_votes_by_hand() -> None:
    """Voters hottest at the same patch, beside it across a corner, two patches away; one of them empty."""
    places = [(1, 1), (2, 2), (1, 3), (1, 1)]
    voters = [Recipe("hirescam", f"block{i}", "residual", "balanced") for i in range(4)]
    heats = {voter: heat_at(place, 1) for voter, place in zip(voters, places, strict=True)}
    heats[voters[3]].empty[:] = True
    layers = {voter.layer: heats[voter] for voter in voters}

    class Maps:
        def maps(self, recipe: Recipe) -> dict[str, Heat]:
            return layers

    tried = TriedDetector(lambda *given, **asked: Maps(), lambda x: x.mean(dim=(1, 2, 3)), in_batches(4))
    checked = Checked(torch.rand(1, 3, 32, 32), ["fake"], torch.ones(1), [0])
    asked = Voters(voters, [Recipe("gradcam", "block2", "residual", "balanced")])
    found = check_maps(tried, checked, {"map": heat_at((1, 1), 1)}, "gradcam", MEAN_COLOUR, asked)
    assert found["map"][0].votes == 0.5 and found["map"][0].others is None  # a map of its own method is not asked


def test_the_word_must_be_one() -> None:
    values = {"margin": 1.0, "fall": 0.0, "random": 0.0, "mass": None, "votes": None, "others": None}
    assert fit({**values, "word": WEAK}, MapCheck).word == WEAK
    with pytest.raises(Misfit, match="fine"):
        fit({**values, "word": "fine"}, MapCheck)
    assert np.isfinite(support(1.0, 0.0, 1e-30, 0.0))
