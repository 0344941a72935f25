"""Models that end in a sigmoid or a softmax: their own probability, and the map of the logit before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.gradcam import InputError, choose, explain
from utils.gradcam_kit.explaining.any_model import AnyModelWithGradCAM
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.settings.config import DetectorSettings
from utils.gradcam_kit.settings.config_values import gradcam_settings

LAYER = "net.3"


class Ending(nn.Module):
    """A small network whose logits, as many as `classes`, become what `end` makes of them."""

    def __init__(self, classes: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, classes)
        self.end = end
        with torch.no_grad():
            self.fc.weight *= 30
            self.fc.bias.sub_(self.fc(self.net(images()).mean(dim=(2, 3))).median(dim=0).values)

    def logits(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.end(self.logits(x))


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


class OwnSigmoid(torch.autograd.Function):
    """One that nobody can look into."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        p = 1 / (1 + (-z).exp())
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return gradient * p * (1 - p)


def rest_and_it(z: Tensor) -> Tensor:
    p = z.sigmoid()
    return torch.cat([1 - p, p], dim=1)


def in_place(z: Tensor) -> Tensor:
    return z.sigmoid_().reshape(-1)


# What the model does with its logits, how many these are, and log(p / (1 - p)) of fake by hand.
ENDS: dict[str, tuple[int, Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "a module": (1, nn.Sequential(nn.Identity(), nn.Sigmoid()), lambda z: z[:, 0]),
    "squeezed": (1, lambda z: torch.sigmoid(z).squeeze(1), lambda z: z[:, 0]),
    "in place": (1, in_place, lambda z: z[:, 0]),
    "clamped, in a mapping": (1, lambda z: {"cls": z.sigmoid().clamp(1e-6, 1 - 1e-6)}, lambda z: z[:, 0]),
    "special": (1, lambda z: SimpleNamespace(logits=torch.special.expit(z)), lambda z: z[:, 0]),
    "its logarithm": (1, F.logsigmoid, lambda z: z[:, 0]),
    "one and its rest": (1, rest_and_it, lambda z: z[:, 0]),
    "stacked": (1, lambda z: torch.stack([1.0 - z.sigmoid()[:, 0], z.sigmoid()[:, 0]], 1), lambda z: z[:, 0]),
    "softmax": (2, nn.Softmax(dim=1), lambda z: z[:, 1] - z[:, 0]),
    "functional softmax": (2, lambda z: {"logits": F.softmax(z, dim=-1)}, lambda z: z[:, 1] - z[:, 0]),
    "log softmax": (2, nn.LogSoftmax(dim=1), lambda z: z[:, 1] - z[:, 0]),
    "fake's column": (2, lambda z: z.softmax(1)[:, 1], lambda z: z[:, 1] - z[:, 0]),
    "five classes": (5, lambda z: torch.softmax(z, 1), lambda z: z[:, 1:].logsumexp(1) - z[:, 0]),
    "fake's column of five": (5, lambda z: z.softmax(1)[:, 3:4], lambda z: z[:, 3] - z[:, [0, 1, 2, 4]].logsumexp(1)),
    "a sigmoid each": (2, lambda z: z.sigmoid(), lambda z: z[:, 1] - z[:, 0]),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_logit_before_a_probability_is_explained(end: str) -> None:
    classes, ends, by_hand = ENDS[end]
    model = Ending(classes, ends).eval()
    with torch.no_grad():
        wanted = by_hand(model.logits(images()))
    with pytest.warns(UserWarning, match="returns probabilities"):
        found = explain(model, images(), LAYER, target="margin")
    torch.testing.assert_close(found.prob_fake, wanted.sigmoid())
    assert classes > 2 or 0 < int((found.prob_fake > 0.5).sum()) < len(wanted)
    with torch.no_grad():
        A = model.net(images())
    A.requires_grad_()
    by_hand(model.fc(A.mean(dim=(2, 3)))).sum().backward()
    assert A.grad is not None
    cam = (A.grad.mean(dim=(2, 3), keepdim=True) * A).sum(dim=1).relu().detach()
    torch.testing.assert_close(found.layers[LAYER].raw, cam, rtol=1e-4, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        again = explain(model, images(), target="predicted")
    assert list(again.target) == ["fake" if z > 0 else "real" for z in wanted.tolist()]


@pytest.mark.parametrize("saturated", [40.0, -40.0])
def test_a_sure_model_has_a_map(saturated: float) -> None:
    """Its probability is 1 to the last bit, or smaller than any gradient."""
    model = Ending(1, torch.sigmoid).eval()
    with torch.no_grad():
        model.fc.bias.add_(saturated)
    with pytest.warns(UserWarning, match="returns probabilities"):
        found = explain(model, images(), LAYER, target="fake")
    assert bool(torch.isfinite(found.layers[LAYER].raw).all()) and not bool(found.layers[LAYER].empty.all())
    torch.testing.assert_close(found.logits, model.logits(images()).detach())


UNSEEN: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
    "a function of their own": (1, OwnSigmoid.apply),
    "the mean of two": (2, lambda z: z.sigmoid().mean(dim=1)),
    "by tanh": (1, lambda z: (z.tanh() + 1) / 2),
    "evidence": (3, lambda z: (F.softplus(z) + 1) / (F.softplus(z) + 1).sum(dim=1, keepdim=True)),
    "scripted": (1, torch.jit.trace(nn.Sigmoid(), torch.zeros(2, 1))),
}


@pytest.mark.parametrize("end", UNSEEN)
def test_a_probability_of_nothing_that_was_seen_is_refused(end: str) -> None:
    classes, ends = UNSEEN[end]
    model = Ending(classes, ends).eval()
    with pytest.raises(InputError, match="returns probabilities .* give forward, a function from images to logits"):
        explain(model, images())
    assert explain(model, images(), forward=model.logits).logits.shape == (6, classes)


@pytest.mark.parametrize(
    "end",
    [
        (1, nn.Linear(1, 1)),  # whatever its values
        (1, lambda z: z * 1e-3 + 0.5),  # all between 0 and 1, and not for other images
        (2, lambda z: z.relu()),
        (2, lambda z: F.adaptive_avg_pool1d(z.unsqueeze(2), 1).flatten(1)),
        (2, lambda z: {"cls": z.softmax(1), "prob": z.softmax(1).softmax(1)[:, 1]}),  # as its own host reads it
    ],
    ids=range(5),
)
def test_logits_stay_what_they_are(end: tuple[int, Callable[[Tensor], Any]]) -> None:
    model = Ending(*end).eval()
    if isinstance(model.end, nn.Linear):
        with torch.no_grad():
            model.end.weight.fill_(1e-4)
            model.end.bias.fill_(0.5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        output = model(images())
        found = explain(model, images())
    wanted = output["cls"] if isinstance(output, dict) else output
    assert torch.equal(found.logits, wanted.reshape(6, -1))


def loaded(model: nn.Module) -> LoadedDetector:
    config = {"model_name": "theirs", "resolution": 24, "gradcam_enabled": True}
    settings = DetectorSettings(config, "theirs", None, 24, gradcam_settings(config), build="their:build")
    return LoadedDetector(
        model=AnyModelWithGradCAM(model, config).eval(), device=torch.device("cpu"), precision="fp32", settings=settings
    )


@pytest.mark.parametrize("end", ["squeezed", "softmax", "one and its rest"])
def test_predictions_of_a_run_are_the_models_own(end: str) -> None:
    classes, ends, by_hand = ENDS[end]
    model = Ending(classes, ends).eval()
    detector = loaded(model)
    pixels = torch.randint(0, 256, (5, 3, 24, 24), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    with pytest.warns(UserWarning, match="returns probabilities"):
        detector.check_predictions()
    with torch.no_grad():
        wanted = by_hand(model.logits(detector.normalise(pixels)))
    scores, prob = detector.predict(pixels)
    torch.testing.assert_close(prob, wanted.sigmoid())
    torch.testing.assert_close(detector.explain(pixels).prob_fake, prob)
    assert torch.equal(scores[:, 1] > scores[:, 0], wanted > 0)


def test_a_choice_is_made_on_logits() -> None:
    model, plain = Ending(1, torch.sigmoid).eval(), Ending(1, nn.Identity()).eval()
    with pytest.warns(UserWarning, match="returns probabilities"):
        chosen = choose(model, images(12))
    assert chosen == choose(plain, images(12))
