"""The choice on a real tower whose evidence is known: one patch decides, and a brighter one only looks as if it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import images as random_images
from tests.helpers.detectors import tiny_config, tiny_detector
from tests.helpers.references.known_evidence import (
    DECOY,
    DECOY_LEVEL,
    EVIDENCE,
    FAKE_LEVEL,
    GRID,
    REAL_LEVEL,
    evidence_detector,
    normalised,
    patch,
)
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.engine.towers.tower import tower_of
from utils.gradcam_kit.judge.candidates import MapLayers, candidate_maps, captures, map_layers, shortlist
from utils.gradcam_kit.judge.choosing import separates
from utils.gradcam_kit.judge.trial import BLUR, MEAN_COLOUR, MIRRORED
from utils.gradcam_kit.judge.verdict import CHOSEN, NAMED, UNDECIDED, UNSUPPORTED, judgements

LAYER = "encoder.layers.3"
MISLED = Recipe("gradcam", LAYER, "residual", "plain")


def test_whether_a_detector_separates() -> None:
    """Of 10 reals and 10 fakes, two deviations above chance are 1/2 + 2 √(21 / 1200) = .765; of many, .7 is asked."""
    reals, labels = torch.arange(10.0), [0] * 10 + [1] * 10
    assert not separates(torch.cat([reals, reals + 2.5]), labels)  # fake i is above reals 0 to i + 2: 72 pairs of 100
    assert separates(torch.cat([reals, reals + 3.5]), labels)  # 79 pairs
    many = torch.arange(1000.0)
    for shift, fair in ((200, False), (240, True)):  # 1 - (1 - shift)² / 2: .68 and .71
        assert separates(torch.cat([many, many + shift + 0.5]), [0] * 1000 + [1] * 1000) is fair
    assert separates(torch.tensor([0.0, 0.2]), None) and not separates(torch.tensor([0.0, 0.02]), None)
    assert separates(torch.zeros(1), None)


NAMES: list[dict[str, Any]] = [{}, {"gradcam_layers": ["auto"]}, {"gradcam_layers": "auto", "gradcam_method": "legrad"}]


def picture(seed: int, level: int) -> np.ndarray:
    """(H, W, 3) uint8 noise with a bright decoy, and evidence of that level."""
    image = np.random.default_rng(seed).integers(124, 133, (64, 64, 3), dtype=np.uint8)
    image[patch(DECOY)] = DECOY_LEVEL
    image[patch(EVIDENCE)] = level
    return image


def batch(level: int, count: int = 8) -> torch.Tensor:
    return torch.cat([normalised(picture(seed, level)) for seed in range(count)])


def margin(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model({"image": images})["cls"]
    return logits[:, 1] - logits[:, 0]


@pytest.fixture(scope="module")
def model() -> CLIPDetectorWithGradCAM:
    return evidence_detector()


@pytest.fixture
def fakes_and_reals() -> dict[str, torch.Tensor]:
    return {"image": torch.cat([batch(FAKE_LEVEL), batch(REAL_LEVEL)])}


def test_the_map_that_finds_the_evidence_is_chosen(fakes_and_reals: dict[str, torch.Tensor]) -> None:
    model = evidence_detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choice = model.calibrate_gradcam([fakes_and_reals])
    assert (choice.state, choice.images, choice.videos) == (CHOSEN, 8, 8) and model.gradcam_choice == choice
    assert not model.gradcam.needs_choice and model.gradcam_layers() == [choice.used.layer]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    explanation = model.explain(fakes_and_reals, target="fake")
    (maps,) = explanation.layers.values()
    hottest = maps.raw[:8].flatten(1).argmax(dim=1)
    assert hottest.tolist() == [EVIDENCE[0] * GRID + EVIDENCE[1]] * 8
    assert (explanation.method, explanation.backward) == (choice.used.method, choice.used.backward)


def filled(image: np.ndarray, fill: str) -> np.ndarray:
    """(3, H, W) float64 replaced as a whole."""
    if fill == MIRRORED:
        return image[..., ::-1]
    if fill == BLUR:
        return np.stack([ndimage.gaussian_filter(one, 3.2, mode="mirror", radius=9) for one in image])
    assert fill == MEAN_COLOUR
    return np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)


def test_falls_are_those_of_the_image_changed_by_hand(model: CLIPDetectorWithGradCAM) -> None:
    """One patch of sixteen is replaced: of a map that finds it the evidence, and the margin falls by all it was worth."""
    fakes = batch(FAKE_LEVEL)
    wrong = evidence_detector()
    wrong.gradcam = replace(wrong.gradcam, recipe=Recipe("gradcam", LAYER, "residual", "plain"))
    judged = wrong.calibrate_gradcam({"image": fakes})
    changed = fakes.double().numpy().copy()
    rows, columns = patch(EVIDENCE)
    for image in changed:
        image[:, rows, columns] = filled(image.copy(), judged.fills[0])[:, rows, columns]
    worth = float((margin(model, fakes) - margin(model, torch.from_numpy(changed).float())).mean())
    assert judged.margin == pytest.approx(float(margin(model, fakes).mean()), rel=1e-5)
    assert judged.rows[0].fall == pytest.approx(worth, rel=1e-4) and worth > judged.margin
    row = judged.row(MISLED)
    assert row is not None and abs(row.fall) < 0.01 * worth


def test_a_named_map_is_judged_and_stays(fakes_and_reals: dict[str, torch.Tensor]) -> None:
    for site, backward, wrong in (("residual", "plain", True), ("residual", "balanced", None)):
        model = evidence_detector()
        method = "gradcam" if wrong else "hirescam"
        named = replace(model.gradcam, recipe=Recipe(method, LAYER, site, backward))
        model.gradcam = named
        choice = model.calibrate_gradcam(fakes_and_reals)
        assert choice.state == NAMED and model.gradcam == named and choice.used == Recipe(method, LAYER, site, backward)
        sentences = judgements(choice)
        assert bool(sentences) == bool(wrong)
        assert not wrong or ("shows nothing" in sentences[0] and str(MISLED) in sentences[0])


def test_what_is_named_is_kept_to() -> None:
    model = CLIPDetectorWithGradCAM(tiny_config(gradcam_method="legrad", gradcam_layers="auto"))
    assert {one.method for one in model.gradcam_candidates()} == {"legrad"}
    model = CLIPDetectorWithGradCAM(tiny_config(gradcam_method="auto", gradcam_layers=["encoder.layers.1"]))
    assert {one.layer for one in model.gradcam_candidates()} == {"encoder.layers.1"}
    assert len({one.method for one in model.gradcam_candidates()}) > 2
    model = CLIPDetectorWithGradCAM(tiny_config(gradcam_backward="plain"))
    assert {one.backward for one in model.gradcam_candidates()} == {"plain"}
    assert all(len(tiny_detector(**names).gradcam_candidates()) <= 16 for names in NAMES)


def test_what_a_config_names_is_what_it_named_before() -> None:
    """Layers alone, or nothing: Grad-CAM behind the first norm. "auto": the balanced sum. A call that names: plain."""
    image = {"image": random_images(2)}
    named = tiny_detector(gradcam_layers=["encoder.layers.2"]).explain(image)
    assert (named.method, named.site, named.backward, list(named.layers)) == (
        "gradcam", "layer_norm1", "plain", ["encoder.layers.2"],
    )  # fmt: skip
    nothing = tiny_detector().explain(image)
    assert (nothing.method, nothing.site, nothing.backward, list(nothing.layers)) == (
        "gradcam", "layer_norm1", "plain", ["encoder.layers.3"],
    )  # fmt: skip
    open_model = tiny_detector(gradcam_method="auto")
    for auto in (open_model.explain(image), tiny_detector().explain(image, method="auto")):
        assert (auto.method, auto.site, auto.backward, list(auto.layers)) == (
            "hirescam", "residual", "plain", ["scaled"],
        )  # fmt: skip
    same = open_model.explain(image, layers=["encoder.layers.2"])
    assert (same.method, same.site, same.backward) == ("gradcam", "layer_norm1", "plain")
    assert torch.equal(same.layers["encoder.layers.2"].raw, named.layers["encoder.layers.2"].raw)
    assert list(open_model.explain(image, method="legrad").layers) == ["encoder.layers.3"]


def test_the_site_follows_the_method_where_it_is_auto() -> None:
    sites = {
        ("hirescam", "balanced"): "residual",
        ("hirescam", "plain"): "layer_norm1",
        ("legrad", "plain"): "attention",
    }
    for (method, backward), site in sites.items():
        config = tiny_config(gradcam_method=method, gradcam_backward=backward, gradcam_site="auto")
        assert CLIPDetectorWithGradCAM(config).gradcam.recipe.site == site


# --------------------------------------------------------------------------------------------------------- bad input


def test_no_image_called_fake(model: CLIPDetectorWithGradCAM) -> None:
    """What there is is used: images called real, and the evidence for that."""
    found = evidence_detector()
    choice = found.calibrate_gradcam({"image": batch(REAL_LEVEL)})
    assert choice.images == 8 and choice.margin == pytest.approx(
        float(-margin(model, batch(REAL_LEVEL)).mean()), rel=1e-5
    )


def test_one_image_chooses_nothing() -> None:
    model = evidence_detector()
    choice = model.calibrate_gradcam({"image": batch(FAKE_LEVEL, 1)})
    assert choice.state == UNDECIDED and "images: 1" in choice.reason
    assert choice.used == evidence_detector().gradcam_candidates()[0]


def test_no_image_at_all() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        evidence_detector().calibrate_gradcam([])


def test_a_detector_that_reads_nothing_of_the_image_is_unsupported() -> None:
    """The head is scaled down until the image moves the margin by rounding alone; a constant one has no gradient."""
    model = evidence_detector()
    with torch.no_grad():
        model.head.weight.mul_(1e-12)
        model.head.bias[:] = torch.tensor([-1.0, 1.0])
    choice = model.calibrate_gradcam({"image": batch(FAKE_LEVEL)})
    assert choice.state == UNSUPPORTED and all(row.beyond.low <= 0 for row in choice.rows)


def test_images_with_nan_logits_are_left_out(fakes_and_reals: dict[str, torch.Tensor]) -> None:
    model = evidence_detector()
    whole = model.forward

    def broken(data: dict[str, torch.Tensor], inference: bool = False) -> dict[str, torch.Tensor]:
        found = whole(data, inference)
        marked = data["image"][:, 0, 0, 0] > 5
        found["cls"] = torch.where(marked.view(-1, 1), torch.full_like(found["cls"], float("nan")), found["cls"])
        return found

    model.forward = broken  # type: ignore[method-assign,assignment]  # as overflow would do it
    images = fakes_and_reals["image"].clone()
    images[2, 0, 0, 0] = 9.0
    choice = model.calibrate_gradcam({"image": images})
    assert choice.images == 7 and choice.state == CHOSEN


# ------------------------------------------------------------------------------------------------------ explain(), CNN


def test_explain_chooses_on_its_own_batch(model: CLIPDetectorWithGradCAM) -> None:
    images = torch.cat([batch(FAKE_LEVEL), batch(REAL_LEVEL)])
    explanation = explain(model, images, method="auto", forward=lambda x: model({"image": x}), target="fake")
    assert explanation.choice is not None and explanation.choice.state == CHOSEN
    assert explanation.method == explanation.choice.used.method
    (maps,) = explanation.layers.values()
    assert set(maps.raw[:8].flatten(1).argmax(dim=1).tolist()) == {EVIDENCE[0] * GRID + EVIDENCE[1]}
    assert explain(model, images, forward=lambda x: model({"image": x}), target="fake").choice is None


class Spot(torch.nn.Module):
    """A small network of convolutions whose margin is the brightness of the lower right quarter's red, times ten."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, stride=4, padding=1)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(0.01)
                assert layer.bias is not None
                layer.bias.zero_()
                layer.weight[0, 0, 1, 1] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.second(self.first(x).relu()).relu()
        red = maps[:, 0, maps.shape[2] // 2 :, maps.shape[3] // 2 :].mean(dim=(1, 2))
        return torch.stack([-5 * red, 5 * red], dim=1)


def test_a_convolutional_network_has_candidates_at_two_layers() -> None:
    network = Spot().eval()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    choice = explain(network, images, method="auto", target="fake").choice
    assert choice is not None and choice.state in (CHOSEN, UNDECIDED)
    assert {row.candidate.layer for row in choice.rows} == {"first", "second"}
    assert {row.candidate.backward for row in choice.rows} == {"plain"}
    assert choice.rows[0].beyond.low > 0


class Gated(nn.Module):
    """Three stages of halved grids; a gate weighs the channels of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()) for _ in range(3))
        self.weigh, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages[1](self.stages[0](self.stem(x)))
        x = x * self.weigh(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
        return self.head(self.stages[2](x).mean(dim=(2, 3)))


def test_a_network_with_gates_has_finer_candidates_with_constant_gates() -> None:
    network, image = Gated().eval(), torch.rand(1, 3, 64, 64)
    found = map_layers(network, "stages.2", lambda: network(image))
    assert found == MapLayers(["stages.2", "stages.1", "stages.0", "stem"], gated=True)
    candidates = shortlist(tower_of(network), found, Recipe.open())
    assert len(candidates) == 16 and candidates[0] == Recipe("gradcam", "stages.2", "layer_norm1", "plain")
    assert {one.layer for one in candidates if one.backward == "balanced"} == {"stages.1", "stages.0", "stem"}


@pytest.mark.parametrize(
    ("named", "rules"),
    [(Recipe.open(), ["both", "plain", "balanced"]), (Recipe("auto", "auto", "auto", "balanced"), ["balanced"])],
)
def test_contrast_is_tried_by_every_backward_rule(
    model: CLIPDetectorWithGradCAM, named: Recipe, rules: list[str]
) -> None:
    candidates = model.as_subject().candidates(named, bank=True)
    assert candidates[0] == Recipe("contrast", "scaled", "residual", rules[0])
    assert [one.backward for one in candidates if one.method == "contrast"] == rules


def test_the_passes_that_are_announced_are_those_that_are_made(model: CLIPDetectorWithGradCAM) -> None:
    made: list[list[Recipe]] = []

    def capture(recipes: list[Recipe]) -> Any:
        made.append(recipes)
        return model.as_subject().capture({"image": batch(FAKE_LEVEL, 1)}, recipes, "fake")

    candidates = model.gradcam_candidates()
    assert set(candidate_maps(capture, candidates)) == set(candidates)
    # Plain, by both rules and balanced on the residual stream, plain behind the norm, attention: one graph serves all.
    assert len(made) == 1 and captures(candidates) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_of_one_capture_are_those_of_a_capture_each(model: CLIPDetectorWithGradCAM, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    images = batch(FAKE_LEVEL, 3).to(dtype)
    subject, candidates = model.as_subject(), model.gradcam_candidates()

    def capture(recipes: list[Recipe]) -> Any:
        return subject.capture({"image": images}, recipes, "fake")

    together = candidate_maps(capture, candidates)
    for one in candidates:
        own = capture([one]).maps(one)[one.layer].signed
        close = 1e-5 if dtype == torch.float32 else 1e-12
        assert (together[one].signed - own).abs().max() <= close * own.abs().max(), one
