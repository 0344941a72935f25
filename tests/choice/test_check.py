"""The word of a single map: by figures written by hand, and on a detector whose evidence is known."""

from __future__ import annotations

import json
from typing import Any

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
    CONTRADICTED,
    SUPPORTED,
    WEAK,
    Checked,
    Evidence,
    MapCheck,
    Voters,
    block_voters,
    check_maps,
    concentration,
    place_of,
    verdicts,
    word_by_contrast,
    word_by_drop,
)
from utils.gradcam_kit.judge.choosing import TriedDetector, in_batches
from utils.gradcam_kit.judge.trial import FILLS, MEAN_COLOUR, CandidateMaps, random_patches


@pytest.mark.parametrize(
    ("share", "votes", "word"),
    [
        (0.25, 1.0, WEAK),  # never supported: what replaces the patches is evidence itself
        (0.05, 0.0, WEAK),
        (0.0, 0.5, WEAK),  # nothing beyond random, but half of the blocks agree
        (0.0, 0.25, ARTEFACT),
        (-0.3, 1.0, CONTRADICTED),  # without its hottest patches the score is higher
        (0.05, None, WEAK),  # no balanced maps: the drop alone
        (0.04, None, ARTEFACT),
    ],
)
def test_the_verdict_without_a_bank(share: float, votes: float | None, word: str) -> None:
    assert word_by_drop(share, votes, empty=False) == word
    assert word_by_drop(share, votes, empty=True) == ARTEFACT


@pytest.mark.parametrize(
    ("contrast", "clear", "share", "word"),
    [
        (0.6, None, None, SUPPORTED),
        (0.59, None, 0.5, WEAK),
        (0.3, None, 0.5, WEAK),
        (0.29, None, 0.5, ARTEFACT),
        (1.0, None, -0.02, CONTRADICTED),
        (0.1, True, None, SUPPORTED),  # a contrast map is hottest where the contrast is: its place decides
        (1.0, False, None, WEAK),
        (0.0, True, None, WEAK),  # nothing there speaks for fake compared with real images
        (1.0, True, -0.5, CONTRADICTED),
    ],
)
def test_the_verdict_with_a_bank(contrast: float, clear: bool | None, share: float | None, word: str) -> None:
    assert word_by_contrast(contrast, clear, share, empty=False) == word
    assert word_by_contrast(contrast, clear, share, empty=True) == ARTEFACT


def test_concentration_by_hand() -> None:
    """On 10 x 10 patches two patches count as near; on 4 x 4 one does."""
    raw = torch.zeros(2, 10, 10)
    raw[:, 2, 2], raw[0, 4, 4], raw[0, 5, 2] = 3.0, 1.0, 1.0
    assert concentration(raw).tolist() == pytest.approx([0.8, 1.0]) and concentration(0 * raw).tolist() == [0.0, 0.0]
    small = torch.zeros(1, 4, 4)
    small[0, 0, 0], small[0, 1, 1], small[0, 0, 2] = 2.0, 1.0, 1.0
    assert concentration(small).tolist() == [0.75]


def test_evidence_by_hand() -> None:
    """Two blocks: one hottest at the corner, one next to it; the second image's blocks do not agree."""
    blocks = torch.zeros(2, 2, 4, 4)
    blocks[:, 0, 0, 0] = blocks[0, 1, 1, 1] = blocks[1, 1, 3, 3] = 9.0
    evidence = Evidence(blocks)
    corner, centre = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    corner[:, 0, 0] = centre[:, 2, 2] = 1.0
    # Over 3 x 3 patches the first block is 9/4 at the corner, 9/6 beside it; the second spreads around (1, 1).
    scaled = blocks / blocks.flatten(2).std(dim=2, unbiased=False)[..., None, None]
    joint = scaled.mean(dim=1)
    at_corner = float(joint[0, :2, :2].mean())
    largest = max(
        float(joint[0, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean()) for r in range(4) for c in range(4)
    )
    assert float(evidence.contrast(corner)[0]) == pytest.approx(at_corner / largest, rel=1e-5)
    assert evidence.votes(corner).tolist() == [1.0, 0.5]
    assert float(evidence.contrast(centre)[1]) < float(evidence.contrast(corner)[1])
    nothing = Evidence(-torch.ones(1, 2, 4, 4))
    assert nothing.contrast(corner[:1]).tolist() == [-1.0]  # no patch speaks for the class


def test_the_place_of_a_contrast_map_by_hand() -> None:
    """On 10 x 10 patches two count as near; the standardised contrast weighs as much as votes and concentration."""
    blocks, standard, raw = torch.zeros(1, 1, 10, 10), torch.full((1, 10, 10), -4.0), torch.zeros(1, 10, 10)
    blocks[0, 0, 2, 2] = raw[0, 2, 2] = 1.0
    standard[0, 2, 3], standard[0, 4, 4], standard[0, 5, 2], standard[0, 9, 9] = 1.0, 1.0, 2.0, 4.0
    shares = Evidence(blocks, standard).near(raw)
    assert shares is not None and shares.tolist() == [0.25] and Evidence(blocks).near(raw) is None
    assert place_of(1.0, 0.5, None) == 0.75 and place_of(1.0, 0.5, 0.25) == 0.5
    two = torch.zeros(1, 2, 10, 10)
    two[0, 0, 2, 2] = two[0, 1, 9, 9] = 1.0  # one block of two is hottest at the map's peak
    concentrated = 81 / (16 + 81)  # a corner's patch has the square of 1/4, an inner one that of 1/9
    for elsewhere, word in ((1.0, SUPPORTED), (6.0, WEAK)):  # (.5 + .84) / 4 + 2/5 / 2 is enough; with 2/10 it is not
        standard[0, 5, 2], standard[0, 9, 9] = 2.0, elsewhere
        given = Checked(torch.rand(1, 3, 80, 80), ["fake"], torch.tensor([3.0]), [0], Evidence(two, standard))
        check = verdicts(given, {"map": CandidateMaps(raw, torch.tensor([False]))}, "contrast")["map"][0]
        assert check.standard == pytest.approx(2 / (4 + elsewhere)) and check.votes == 0.5
        assert check.concentration == pytest.approx(concentrated) and check.word == word


def test_maps_of_the_real_class_are_at_most_weak() -> None:
    blocks = torch.zeros(2, 1, 4, 4)
    blocks[:, 0, 0, 0] = 9.0
    maps = {"map": heat_at((0, 0), 2)}
    checked = Checked(torch.rand(2, 3, 32, 32), ["fake", "real"], torch.tensor([3.0, -3.0]), [0, 1], Evidence(blocks))
    assert [one.word for one in verdicts(checked, maps, "gradcam")["map"]] == [SUPPORTED, WEAK]


def detector(model: Any) -> TriedDetector:
    def margins(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = model({"image": images})["cls"]
        return logits[:, 1] - logits[:, 0]

    def capture(images: torch.Tensor, target: list[str], videos: Any, recipes: list[Recipe]) -> Any:
        return model.as_subject().capture({"image": images}, recipes, list(target))

    return TriedDetector(capture, margins, in_batches(4))


def heat_at(place: tuple[int, int], count: int) -> CandidateMaps:
    raw = torch.full((count, GRID, GRID), 0.1)
    raw[:, place[0], place[1]] = 1.0
    return CandidateMaps(raw, torch.zeros(count, dtype=torch.bool))


def test_checks_of_a_right_and_of_a_wrong_map() -> None:
    model = evidence_detector()
    images = torch.cat([normalised(flat_image(level)) for level in (FAKE_LEVEL, FAKE_LEVEL + 4)])
    tried = detector(model)
    margins = tried.margins(images)
    checked = Checked(images, ["fake", "fake"], margins, [4, 5])
    voters = Voters(block_voters([f"encoder.layers.{i}" for i in range(BLOCKS)]), [])
    maps = {"right": heat_at(EVIDENCE, 2), "wrong": heat_at((3, 0), 2)}
    checks = check_maps(tried, checked, maps, "gradcam", FILLS[MEAN_COLOUR](images), voters)
    grey = images.clone()
    rows, columns = (slice(16 * place, 16 * place + 16) for place in EVIDENCE)
    for image, whole in zip(grey, images, strict=True):
        image[:, rows, columns] = float(whole.double().mean())
    falls = margins - tried.margins(grey)
    for i in range(2):
        right, wrong = checks["right"][i], checks["wrong"][i]
        assert right.fall == pytest.approx(float(falls[i]), rel=1e-4) and right.word == WEAK
        assert right.fall is not None and wrong.fall is not None
        assert abs(wrong.fall) < 1e-3 * right.fall and wrong.word == ARTEFACT
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
        def maps(self, recipe: Recipe) -> dict[str, CandidateMaps]:
            return layers

    tried = TriedDetector(lambda *given, **asked: Maps(), lambda x: x.mean(dim=(1, 2, 3)), in_batches(4))
    checked = Checked(torch.rand(1, 3, 32, 32), ["fake"], torch.ones(1), [0])
    asked = Voters(voters, [Recipe("gradcam", "block2", "residual", "balanced")])
    found = check_maps(tried, checked, {"map": heat_at((1, 1), 1)}, "gradcam", checked.images, asked)
    assert found["map"][0].votes == 0.5 and found["map"][0].others is None  # a map of its own method is not asked


def test_the_word_must_be_one() -> None:
    values = {"margin": 1.0, "fall": 0.0, "random": 0.0, "mass": None, "votes": None, "others": None}
    assert fit({**values, "word": WEAK}, MapCheck).word == WEAK
    with pytest.raises(Misfit, match="fine"):
        fit({**values, "word": "fine"}, MapCheck)


def test_the_verdict_as_a_sentence() -> None:
    check = MapCheck(
        word="contradicted", margin=1.388, fall=-0.6367, random=0.25, mass=8.09, votes=0.5, others=None, contrast=0.4
    )
    assert check.sentence == (
        "Contradicted: replacing its hottest patches raised the margin (1.39) by 0.637, replacing random ones lowered it by 0.25;"
        " its hottest patch has 40% of the largest contrast with real images; 50% of the blocks' maps peak there"
    )
    nothing = MapCheck(
        word="artefact", margin=1.0, fall=None, random=None, mass=None, votes=None, others=None, contrast=-0.1
    )
    assert nothing.sentence == "Artefact: its hottest patch adds no more to the score than real patches do"
    bare = MapCheck(word="weak", margin=1.0, fall=None, random=None, mass=None, votes=None, others=None)
    assert bare.sentence == "Weak"
