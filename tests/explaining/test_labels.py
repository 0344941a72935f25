"""Labels in every form in which training code has them: what target "label" explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.detectors import images, tiny_detector
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.heads import label_numbers
from utils.gradcam_kit.explaining.training_log import captions

REAL_FAKE = [
    torch.tensor([0, 1]), torch.tensor([False, True]), torch.tensor([0, 7]), torch.tensor([0, -1]),
    torch.tensor([0.0, 1.0]), torch.tensor([0.05, 0.95]), torch.tensor([0.1, 0.9], dtype=torch.float16),
    torch.tensor([0.49, 0.51], dtype=torch.float64), torch.tensor([[0.05], [0.95]]), torch.tensor([[0], [1]]),
    torch.tensor([0.0, 3.0]), torch.tensor([0.3, 0.7], dtype=torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize("label", REAL_FAKE)
def test_a_smoothed_label_keeps_its_class(label: torch.Tensor) -> None:
    assert label_numbers(label) == [0, 1]
    x = images(2)
    found = tiny_detector().explain({"image": x, "label": label}, layers=["encoder.layers.3"], target="label")
    wanted = tiny_detector().explain({"image": x}, layers=["encoder.layers.3"], target=["real", "fake"])
    assert list(found.target) == ["real", "fake"]
    torch.testing.assert_close(found.layers["encoder.layers.3"].raw, wanted.layers["encoder.layers.3"].raw)


@pytest.mark.parametrize("label", [[0.05, 0.95], np.array([0.2, 0.8]), (0, 1), np.array([False, True])])
def test_lists_and_arrays_of_labels(label: object) -> None:
    batch: Any = {"image": images(2), "label": label}
    assert list(tiny_detector().explain(batch, layers=["encoder.layers.3"], target="label").target) == ["real", "fake"]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (torch.tensor([0.5, 1.0]), "holds 0.5, which is neither real nor fake"),
        (torch.tensor([float("nan"), 1.0]), "holds nan"),
        (torch.tensor([-0.2, 1.0]), "holds -0.2"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), r"has shape \(2, 2\): give one label for each image"),
    ],
)
def test_labels_of_neither_class(label: torch.Tensor, said: str) -> None:
    batch = {"image": images(2), "label": label}
    with pytest.raises(InputError, match=said):
        tiny_detector().explain(batch, layers=["encoder.layers.3"], target="label")
    tiny_detector().explain(batch, layers=["encoder.layers.3"], target="fake")  # which asks for none


def test_captions_of_mixed_labels_end_no_training() -> None:
    found = captions(torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.5, 0.05]))
    assert found == ["fake 0.25, is real", "fake 0.25, is fake", "fake 0.25, label 0.50", "fake 0.25, label 0.05"]
