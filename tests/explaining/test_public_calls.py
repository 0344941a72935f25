"""Every public call with every spelling of its arguments: the same map, or one InputError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import BLOCKS, images, tiny_detector
from utils.gradcam import Explanation, InputError, Recipe, choose, explain, log_gradcam

LAST = f"encoder.layers.{BLOCKS - 1}"
SPELLINGS = {
    "name": lambda model: LAST,
    "prefixed name": lambda model: f"backbone.{LAST}",
    "-1": lambda model: -1,
    "text": lambda model: "-1",
    "number": lambda model: BLOCKS - 1,
    "NumPy": lambda model: np.int64(-1),
    "0-d tensor": lambda model: torch.tensor(-1),
    "module": lambda model: model.backbone.get_submodule(LAST),
    "list": lambda model: [LAST],
    "list of numbers": lambda model: [-1],
    "list of modules": lambda model: [model.backbone.get_submodule(LAST)],
    "tuple": lambda model: (LAST,),
    "array": lambda model: np.array([-1]),
    "tensor": lambda model: torch.tensor([-1]),
}
NO_LAYERS = {
    "no such name": "encoder.layers.x",
    "beyond the last": BLOCKS,
    "before the first": -BLOCKS - 1,
    "fraction": 1.5,
    "bool": True,
    "None inside": [None],
    "object": object(),
    "another model's module": nn.ReLU(),
    "float tensor": torch.tensor(0.5),
    "bytes of a name": [b"encoder.layers.3"],
}
TARGETS: dict[str, tuple[Any, str]] = {
    "name": ("fake", "fake"),
    "1": (1, "fake"),
    "0": (0, "real"),
    "True": (True, "fake"),
    "NumPy": (np.int64(0), "real"),
    "NumPy bool": (np.bool_(True), "fake"),
    "0-d tensor": (torch.tensor(1), "fake"),
    "list": (["fake", "fake"], "fake"),
    "numbers": ([1, 1], "fake"),
    "bools": ([False, False], "real"),
    "array": (np.array([1, 1]), "fake"),
    "tensor": (torch.tensor([0, 0]), "real"),
    "tuple": (("real", 0), "real"),
}
NO_TARGETS = {
    "word": "fakee",
    "number": 7,
    "fraction": 0.5,
    "too few": [1],
    "nothing": [None, None],
    "object": object(),
}


class Images(nn.Module):
    """A detector as a plain module: images in, logits out."""

    def __init__(self, detector: CLIPDetectorWithGradCAM) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.head(self.backbone(pixels)["pooler_output"])
        return found


class Writer:
    """Stands for a SummaryWriter."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        self.images.append(image)


def only(explanation: Explanation) -> Tensor:
    return explanation.heatmap


def logged(model: Any, batch: Any, **how: Any) -> Tensor:
    writer = Writer()
    log_gradcam(writer, model, batch, 0, **how)
    (image,) = writer.images
    return image


CALLS: dict[str, Callable[..., Tensor]] = {
    "explain, a plain module": lambda model, batch, **how: only(explain(Images(model), batch, **how)),
    "explain, a detector": lambda model, batch, **how: only(explain(model, batch, **how)),
    "explain, recipes": lambda model, batch, layers=None, **how: only(
        explain(model, batch, recipes=[Recipe("gradcam", layers=layers)], **how)
    ),
    "model.explain": lambda model, batch, **how: only(model.explain(batch, **how)),
    "model.generate_gradcam": lambda model, batch, **how: next(iter(model.generate_gradcam(batch, **how).values())),
    "model.show_gradcam": lambda model, batch, **how: torch.tensor(
        np.stack([axes.images[0].get_array() for axes in model.show_gradcam(batch, **how).axes[1::2]])
    ),
    "model.capture": lambda model, batch, **how: (
        next(iter(model.capture(batch, methods="gradcam", **how).maps("gradcam").values())).normalised
    ),
    "log_gradcam": logged,
}


@pytest.fixture(scope="module")
def model() -> CLIPDetectorWithGradCAM:
    return tiny_detector(gradcam_method="gradcam", gradcam_layers=[LAST])


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("call", CALLS)
def test_layers(model: CLIPDetectorWithGradCAM, call: str, spelling: str) -> None:
    asked = SPELLINGS[spelling](model)
    wanted = CALLS[call](model, images(2), layers=LAST, target="fake")
    assert torch.equal(CALLS[call](model, images(2), layers=asked, target="fake"), wanted) and wanted.any()


@pytest.mark.parametrize("layers", NO_LAYERS)
@pytest.mark.parametrize("call", CALLS)
def test_layers_that_there_are_not(model: CLIPDetectorWithGradCAM, call: str, layers: str) -> None:
    with pytest.raises(InputError) as refused:
        CALLS[call](model, images(2), layers=NO_LAYERS[layers], target="fake")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spelling", TARGETS)
@pytest.mark.parametrize("call", CALLS)
def test_targets(model: CLIPDetectorWithGradCAM, call: str, spelling: str) -> None:
    target, name = TARGETS[spelling]
    wanted = CALLS[call](model, images(2), layers=LAST, target=name)
    assert torch.equal(CALLS[call](model, images(2), layers=LAST, target=target), wanted)


@pytest.mark.parametrize("target", NO_TARGETS)
@pytest.mark.parametrize("call", CALLS)
def test_targets_that_there_are_not(model: CLIPDetectorWithGradCAM, call: str, target: str) -> None:
    with pytest.raises(InputError) as refused:
        CALLS[call](model, images(2), layers=LAST, target=NO_TARGETS[target])
    assert "\n" not in str(refused.value)


def test_the_default_target_is_the_prediction_in_every_call(model: CLIPDetectorWithGradCAM) -> None:
    real_and_fake = torch.cat([images(2, seed) for seed in range(8)])
    logits = model({"image": real_and_fake})["cls"]
    predicted = ["fake" if fake > real else "real" for real, fake in logits.tolist()]
    assert explain(Images(model), real_and_fake).target == predicted
    assert explain(model, real_and_fake).target == model.explain(real_and_fake).target == predicted


@pytest.mark.parametrize("call", CALLS)
def test_both_is_made_by_calls_that_give_several_maps(model: CLIPDetectorWithGradCAM, call: str) -> None:
    if call in ("model.generate_gradcam", "model.show_gradcam"):
        assert CALLS[call](model, images(2), layers=LAST, target="both").any()
        return
    with pytest.raises(InputError, match="both|2 maps") if call != "log_gradcam" else pytest.raises(ValueError):
        CALLS[call](model, images(2), layers=LAST, target="both")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "label", [[1, 0], (1, 0), np.array([1, 0]), torch.tensor([1, 0])], ids=lambda one: type(one).__name__
)
def test_labels_and_images_in_a_mapping(model: CLIPDetectorWithGradCAM, call: str, label: Any) -> None:
    wanted = CALLS[call](
        model, {"image": images(2), "label": torch.tensor([1, 0])}, layers=LAST, target=["fake", "real"]
    )
    found = CALLS[call](model, {"image": images(2), "label": label}, layers=LAST, target="label")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "given", [None, "face.png", np.zeros((2, 3, 64, 64), np.float32), [1, 2], {}, {"image": None}, {"image": "face.png"},
              torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)],
    ids=lambda one: f"{type(one).__name__} {getattr(one, 'shape', '')}",
)  # fmt: skip
def test_no_images(model: CLIPDetectorWithGradCAM, call: str, given: Any) -> None:
    with pytest.raises(InputError) as refused:
        CALLS[call](model, given, layers=LAST, target="fake")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given", [{"label": [1]}, {"label": "real"}, {"label": object()}], ids=["too few", "a word", "an object"]
)
def test_labels_that_do_not_fit(model: CLIPDetectorWithGradCAM, given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        model.explain({"image": images(2), **given}, target="label")


@pytest.mark.parametrize(
    "batches",
    [images(4), {"image": images(4)}, [images(4)], [{"image": images(4)}], [(images(4), [1, 0, 1, 0])], (images(4),)],
    ids=["tensor", "mapping", "list", "list of mappings", "pairs of a loader", "tuple"],
)
def test_images_to_choose_on(batches: Any) -> None:
    model = tiny_detector()
    assert model.calibrate_gradcam(batches).images == tiny_detector().calibrate_gradcam([{"image": images(4)}]).images
    recipe = choose(Images(model), batches)
    assert isinstance(recipe, Recipe) and not recipe.is_open and recipe == choose(Images(model), images(4))


@pytest.mark.parametrize("batches", [[], None, 3, ["face.png"]], ids=str)
def test_nothing_to_choose_on(batches: Any) -> None:
    for call in (tiny_detector().calibrate_gradcam, lambda given: choose(Images(tiny_detector()), given)):
        with pytest.raises(InputError):
            call(batches)


def test_several_recipes_from_one_pass(model: CLIPDetectorWithGradCAM) -> None:
    """Each map is that of a call of its own; one forward pass serves both."""
    plain, forwards = Images(model), []
    plain.register_forward_hook(lambda *given: forwards.append(1))
    recipes = [Recipe("hirescam", layers=-2), Recipe("legrad")]
    found = explain(plain, images(2), recipes=recipes, target="fake")
    assert len(forwards) == 1 and list(found.layers) == ["hirescam", "legrad"]
    for recipe in recipes:
        alone = explain(plain, images(2), recipes=recipe, target="fake")
        assert torch.equal(
            found[recipe.method], found[recipe]
        )  # alone, the last block may run for its class token only
        torch.testing.assert_close(found[recipe], alone.heatmap, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.maps[recipe.method].raw, alone.maps.raw, rtol=1e-4, atol=1e-9)
    with pytest.raises(InputError, match="2 maps"):
        found.heatmap  # noqa: B018  the property refuses
    with pytest.raises(InputError, match="did you mean 'hirescam'"):
        found["hirecam"]


def test_one_recipe_of_several_layers_is_indexed_by_layer(model: CLIPDetectorWithGradCAM) -> None:
    found = explain(model, images(2), recipes=[Recipe("hirescam", layers=[0, -1])])
    assert list(found.layers) == ["0", "-1"]
    assert torch.equal(found["-1"], found.layers["-1"].normalised) and torch.equal(found[-1], found["-1"])
    with pytest.raises(InputError, match="hirescam' matches 2 maps"):
        found["hirescam"]


@pytest.mark.parametrize("plain", [True, False], ids=["module", "detector"])
def test_the_verdict_can_be_had_from_python(model: CLIPDetectorWithGradCAM, plain: bool) -> None:
    """The score's drop is that of the hottest patches at the mean colour, computed here by hand."""
    subject: Any = Images(model) if plain else model
    found = explain(subject, images(2), layers=-1, method="gradcam", target="fake")
    checks = found.check()["-1"]
    raw = found.maps.raw
    for i, check in enumerate(checks):
        assert check.verdict in ("weak", "contradicted", "artefact")  # without a bank none is supported
        hottest = raw[i].flatten().argmax()  # one patch of 16: 5 % rounds to one
        grey = images(2)[i].clone()
        row, column = divmod(int(hottest), raw.shape[2])
        if not found.maps.empty[i]:
            part = (slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
            grey[:, part[0], part[1]] = grey.mean(dim=(1, 2), keepdim=True)
        before, after = (Images(model)(one[None])[0] for one in (images(2)[i], grey))
        drop = (before[1] - before[0]) - (after[1] - after[0])
        assert check.fall == pytest.approx(float(drop), rel=1e-3, abs=1e-5)
