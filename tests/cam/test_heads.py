"""Heads of one, two and more logits: what their scores are, in float64 and by plain autograd of the formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.detectors import (
    ARCHITECTURE,
    BLOCKS,
    PATCH,
    PIXELS,
    AnyHead,
    images,
    spread,
    tiny_config,
    tiny_detector,
)
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.method_references import TOKEN_REFERENCES
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.heads import HeadReader, named_classes

LAYERS = [f"encoder.layers.{i}" for i in range(BLOCKS)]
GRID = (PIXELS // PATCH, PIXELS // PATCH)
FOUR = [{"pristine": "real"}, "deepfakes", {"studio": "real"}, {"face2face": "fake"}]


def with_head(logits: int, **config: Any) -> AnyHead:
    torch.manual_seed(0)
    return spread(AnyHead(tiny_config(**config), logits))


def log_sum_exp(z: Tensor) -> Tensor:
    """By its definition, which is safe for logits as small as these."""
    return z.exp().sum(dim=1).log()


Score = Callable[[Tensor], Tensor]
# Number of logits, config, target → the score (B,) of the logits (B, K), written down once more.
SCORES: dict[tuple[int, str, str], tuple[dict[str, Any], Score]] = {
    (1, "", "fake"): ({}, lambda z: z[:, 0]),
    (1, "", "real"): ({}, lambda z: -z[:, 0]),
    (1, "", "margin"): ({}, lambda z: z[:, 0]),
    (1, "reversed", "fake"): ({"gradcam_classes": ["real"]}, lambda z: -z[:, 0]),
    (2, "reversed", "fake"): ({"gradcam_classes": ["fake", "real"]}, lambda z: z[:, 0]),
    (2, "reversed", "margin"): ({"gradcam_classes": ["fake", "real"]}, lambda z: z[:, 0] - z[:, 1]),
    (5, "", "fake"): ({}, lambda z: log_sum_exp(z[:, 1:])),
    (5, "", "real"): ({}, lambda z: z[:, 0]),
    (4, "named", "margin"): (
        {"gradcam_classes": FOUR},
        lambda z: log_sum_exp(z[:, [1, 3]]) - log_sum_exp(z[:, [0, 2]]),
    ),
    (4, "named", "face2face"): ({"gradcam_classes": FOUR}, lambda z: z[:, 3]),
    (3, "label_dict", "FF-F2F"): ({"label_dict": {"FF-real": 0, "FF-DF": 1, "FF-F2F": 2}}, lambda z: z[:, 2]),
}


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("case", SCORES, ids=str)
def test_maps_are_those_of_the_score_written_down(case: tuple[int, str, str], method: str) -> None:
    config, score = SCORES[case]
    model, x = with_head(case[0], **config), images(3)
    tower = reference.ReferenceTower(dict(model.state_dict()), BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH)
    score(tower.logits(x.double())).sum().backward()
    exact = copy.deepcopy(model).double()
    explanation = exact.explain({"image": x.double()}, layers=LAYERS, method=method, target=case[2])
    assert explanation.target == [case[2]] * 3
    for name in LAYERS:
        expected = reference.maps_of(tower, name, "layer_norm1", TOKEN_REFERENCES[method], GRID)
        assert expected.any()
        np.testing.assert_allclose(
            explanation.layers[name].raw.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max()
        )
        one = exact.explain({"image": x[1:2].double()}, layers=[name], method=method, target=case[2])
        np.testing.assert_allclose(one.layers[name].raw[0].numpy(), expected[1], atol=1e-9 * np.abs(expected).max())


def test_one_logit_decides_by_its_sign_and_sigmoid() -> None:
    model, x = with_head(1), images(8)
    z = model({"image": x})["cls"].detach()[:, 0]
    model.head.bias.data -= z.median() + 0.01  # both classes occur
    z = model({"image": x})["cls"].detach()[:, 0]
    explanation = model.explain({"image": x}, target="predicted")
    assert explanation.target == ["fake" if one > 0 else "real" for one in z.tolist()]
    assert len(set(explanation.target)) == 2
    torch.testing.assert_close(explanation.prediction["prob"], 1 / (1 + (-z).exp()))
    assert torch.equal(explanation.real_and_fake, torch.stack([-z, z], dim=1))
    fake, real = (
        model.explain({"image": x}, method="gradcam", target=target).layers["encoder.layers.3"]
        for target in ("fake", "real")
    )
    assert torch.equal(fake.signed, -real.signed)


def test_one_logit_that_speaks_for_real_is_fake_below_zero() -> None:
    model, x = with_head(1, gradcam_classes=["real"]), images(8)
    z = model({"image": x})["cls"].detach()[:, 0]
    model.head.bias.data -= z.median() + 0.01  # both classes occur
    z = model({"image": x})["cls"].detach()[:, 0].double()
    explanation = model.explain({"image": x}, target="predicted")
    torch.testing.assert_close(explanation.prediction["prob"].double(), 1 / (1 + z.exp()), rtol=0, atol=1e-6)
    assert explanation.target == ["real" if one > 0 else "fake" for one in z.tolist()]
    assert len(set(explanation.target)) == 2
    assert torch.equal(explanation.real_and_fake.double(), torch.stack([z, -z], dim=1))


def test_probabilities_of_many_classes_add_up() -> None:
    model, x = with_head(4, gradcam_classes=FOUR), images(6)
    explanation = model.explain({"image": x}, target="predicted")
    probability = explanation.logits.softmax(dim=1)
    fake = probability[:, 1] + probability[:, 3]
    torch.testing.assert_close(explanation.prediction["prob"], fake)
    assert explanation.target == ["fake" if one > 0.5 else "real" for one in fake.tolist()]
    assert explanation.head.names == ("pristine", "deepfakes", "studio", "face2face")


def test_two_logits_are_passed_on_as_they_are() -> None:
    model, x = tiny_detector(), images(4)
    with torch.no_grad():
        plain = model({"image": x})
    explanation = model.explain({"image": x}, target="fake")
    assert all(torch.equal(explanation.prediction[key], plain[key]) for key in ("cls", "prob", "feat"))
    assert explanation.real_and_fake is explanation.logits


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("real", "allowed: a list of class names"),
        ([], "allowed: a list of class names"),
        ([0, 1], "allowed: a list of class names"),
        ([{"a": "real"}, {"b": "forged"}], "allowed: a list of class names"),
        ({"a": "real", "b": "fake"}, "allowed: a list of class names"),
        (["real", "df", "df"], "names a class twice"),
        ([{"a": "fake"}, "b"], "all classes (a, b) are fake"),
        (["real", "margin"], "has the name of a target"),
        ([{"real": "fake"}, {"b": "real"}], "the class 'real' cannot be fake"),
    ],
)
def test_unusable_classes_are_one_line(classes: Any, says: str) -> None:
    with pytest.raises(InputError) as refused:
        tiny_detector(gradcam_classes=classes)
    assert says in str(refused.value) and "gradcam_classes" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("names", "fake"),
    [
        (["FF-real", "FF-DF", "Celeb_Real", "realistic"], [False, True, False, True]),
        (["pristine", "a", "b"], [False, True, True]),
        (["df", "real"], [True, False]),
        (["spoof"], [True]),
    ],
)
def test_names_with_the_word_real_are_real_or_else_the_first(names: list[str], fake: list[bool]) -> None:
    assert list(named_classes(names, "here").values()) == fake


def test_another_number_of_classes_than_logits_is_refused_with_both() -> None:
    with pytest.raises(InputError, match=r"gradcam_classes names 4 classes .*AnyHead has 5 logits"):
        with_head(5, gradcam_classes=FOUR).explain({"image": images(2)})


def test_unknown_targets_name_the_classes() -> None:
    with pytest.raises(InputError, match=r"did you mean 'face2face'.*allowed: predicted, .*both, pristine, deepfakes"):
        with_head(4, gradcam_classes=FOUR).explain({"image": images(1)}, target="face2fake")
    with pytest.raises(InputError, match=r"gradcam_target is 'fakes'; did you mean 'fake'"):
        tiny_detector(gradcam_target="fakes")


@pytest.mark.parametrize(
    "output", [torch.zeros(3, 2), torch.zeros(1, 5), torch.zeros(2, 2, 2), {"cls": torch.zeros(4)}]
)
def test_logits_of_another_number_of_images_are_never_broadcast(output: Any) -> None:
    with pytest.raises(InputError, match=r"the model returned logits of shape \(.*for 2 images"):
        HeadReader(batch=2).read(output)


def test_a_detector_may_leave_out_prob_and_return_more_than_tensors() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    read, head = HeadReader(batch=2).read({"cls": logits, "names": ["a", "b"]})
    assert read["cls"] is logits and set(read) == {"cls", "prob"} and head.is_plain
    torch.testing.assert_close(read["prob"], 1 / (1 + torch.tensor([-1.0, 3.0]).exp()))
