"""`utils.gradcam.explain` for modules that no host knows: any place of the tower, any form of output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, images, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.method_references import TOKEN_REFERENCES, grad_cam
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError

NAMES = [f"encoder.layers.{i}" for i in range(BLOCKS)]
GRID = (4, 4)
OUTPUTS: dict[str, Any] = {
    "tensor": lambda logits: logits,
    "cls": lambda logits: {"cls": logits, "feat": logits * 0},
    "logits": lambda logits: {"loss": None, "logits": logits},
    "object": lambda logits: SimpleNamespace(logits=logits, hidden_states=()),
}


class Anyones(nn.Module):
    """A CLIP tower and a linear head under names that no host uses."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        detector = tiny_detector()
        self.net = nn.ModuleDict({"eyes": detector.backbone})
        self.decide = detector.head
        self.output = output

    def forward(self, image: Tensor) -> Any:
        return OUTPUTS[self.output](self.decide(self.net["eyes"](image)["pooler_output"]))

    def reference(self, image: Tensor, coefficients: list[float]) -> reference.ReferenceTower:
        names = (("net.eyes.", "backbone."), ("decide.", "head."))
        state = {new + key[len(old) :]: value for key, value in self.state_dict().items() for old, new in names
                 if key.startswith(old)}  # fmt: skip
        heads = ARCHITECTURE["num_attention_heads"]
        return reference.reference_gradients(state, image, BLOCKS, heads, PATCH, [coefficients] * len(image))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("method", TOKEN_REFERENCES)
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
def test_maps_equal_plain_autograd_in_float64(output: str, method: str, site: str) -> None:
    model, image = Anyones(output).double(), images(3).double()
    explanation = explain(model, image, NAMES, method, site=site, target="fake")
    tower = model.reference(image, [0.0, 1.0])
    for name in NAMES:
        expected = reference.maps_of(tower, name, site, TOKEN_REFERENCES[method], GRID)
        scale = expected.max() or 1.0
        np.testing.assert_allclose(explanation.layers[name].raw.numpy() / scale, expected / scale, rtol=0, atol=1e-8)
    assert explanation.target == ["fake"] * 3
    with torch.no_grad():
        logits = tower.logits(image)
    torch.testing.assert_close(explanation.logits, logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(explanation.prediction["prob"], logits.softmax(1)[:, 1], rtol=1e-9, atol=1e-12)


def test_what_is_not_said() -> None:
    """Grad-CAM of `fake` at the last block; names relative to the model are understood, and given back as written."""
    model, image = Anyones().double(), images(2).double()
    plain = explain(model, image, target="fake")
    assert list(plain.layers) == NAMES[-1:]
    expected = reference.maps_of(model.reference(image, [0.0, 1.0]), NAMES[-1], "layer_norm1", grad_cam, GRID)
    np.testing.assert_allclose(plain.layers[NAMES[-1]].raw, expected, rtol=0, atol=1e-9 * expected.max())
    full = f"net.eyes.{NAMES[-1]}"
    assert torch.equal(explain(model, image, [full], target="fake").layers[full].raw, plain.layers[NAMES[-1]].raw)


def test_attention_both_classes_and_a_forward_of_ones_own() -> None:
    detector = tiny_detector()
    image = images(2)
    host = detector.explain({"image": image}, layers=NAMES[1:], method="legrad", target="both").layers
    ours = explain(detector, image, NAMES[1:], "legrad", "both", forward=lambda images: detector({"image": images}))
    assert ours.target == ["both"] * 2 and list(ours.layers) == list(host)
    for name in host:
        assert torch.equal(ours.layers[name].raw, host[name].raw)


class SmallCNN(nn.Module):
    """Two convolutions, the mean over positions, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(image))))
        return self.head(maps.mean(dim=(2, 3)))


def test_a_cnn_against_the_closed_form() -> None:
    """Behind the last convolution the score is Σ_c w_c mean ReLU(A_c), so the gradient is w_c [A_c > 0] / positions."""
    model, image = SmallCNN().double(), torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(2)).double()
    explanation = explain(model, image, target="margin")
    assert list(explanation.layers) == ["second"]
    maps = explanation.layers["second"]
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    with torch.no_grad():
        A = F.conv2d(torch.relu(F.conv2d(image, model.first.weight, model.first.bias, stride=2)),
                     model.second.weight, model.second.bias, stride=2).numpy()  # fmt: skip
    w = state["head.weight"][1] - state["head.weight"][0]
    G = w[None, :, None, None] * (A > 0) / (A.shape[2] * A.shape[3])
    expected = np.stack([grad_cam(a, g) for a, g in zip(A, G, strict=True)])
    np.testing.assert_allclose(maps.signed.numpy(), expected, rtol=0, atol=1e-12)
    assert maps.grid == A.shape[2:] and maps.normalised.shape == (3, 40, 56)
    assert (explanation.method, explanation.site) == ("gradcam", "output")
    with pytest.raises(LayerError, match="legrad"):
        explain(model, image, ["second"], "legrad", target="fake")


@pytest.mark.parametrize("make", [Anyones, SmallCNN])
def test_the_model_is_left_as_it_was(make: Any) -> None:
    model = make().train()
    before = state_of(model)
    with torch.no_grad():
        maps = explain(model, images(2), target="fake")
    assert_same_state(before, state_of(model))
    assert not any(layer.raw.requires_grad for layer in maps.layers.values())


class Answers(nn.Module):
    """A CNN that returns something of its own."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.answer = answer

    def forward(self, image: Tensor) -> Any:
        return self.answer(self.conv(image).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: x.unsqueeze(2).expand(2, 4, 3), ["shape (2, 4, 3)", "for 2 images", "(2, K)"]),
        (lambda x: x[:1], ["shape (1, 4)", "for 2 images"]),
        (lambda x: x.flatten(), ["shape (8,)", "for 2 images"]),
        (lambda x: x[:, :0], ["shape (2, 0)"]),
        (lambda x: x.long(), ["torch.int64"]),
        (lambda x: {"prob": x, "score": x}, ["returned dict with prob, score", "'cls' or 'logits'"]),
        (lambda x: (x, x), ["returned tuple"]),
        (lambda x: None, ["returned NoneType"]),
    ],
)
def test_outputs_without_logits_are_refused(answer: Any, says: list[str]) -> None:
    model = Answers(answer)
    before = state_of(model)
    with pytest.raises(InputError) as caught:
        explain(model, images(2), ["conv"], target="fake")
    assert all(part in str(caught.value) for part in ["Answers", *says, "forward"])
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ("x.png", "images is str"),
        (torch.zeros(3, 8, 8), "shape (3, 8, 8)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((2, 3, 8, 8), float("inf")), "image(s) [0, 1]"),
    ],
)
def test_unusable_images_are_refused(images: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        explain(SmallCNN(), images, target="fake")
    assert says in str(caught.value)


def test_a_network_of_no_known_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InputError,
        match=r"Hugging Face CLIP .*encoder\.layers.*convolutional networks.*utils/gradcam_kit/engine/towers",
    ):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2), target="fake")
