"""Weights put in by ways that PyTorch does not count."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import images, tiny_config


def assigned(model: nn.Module) -> None:
    for one in model.parameters():
        one.data = one.data + 0.01


def by_numpy(model: nn.Module) -> None:
    for one in model.parameters():
        one.detach().numpy()[...] *= 1.5


def of_the_head_alone(model: nn.Module) -> None:
    model.get_submodule("head").get_parameter("weight").data.mul_(0.5)


WAYS: dict[str, Callable[[nn.Module], object]] = {
    "copied": lambda model: [one.data.copy_(one.data * 0.9) for one in model.parameters()],
    "assigned": assigned,
    "from a vector": lambda model: vector_to_parameters(
        parameters_to_vector(model.parameters()) * 0.9, model.parameters()
    ),
    "by NumPy": by_numpy,
    "many at once": lambda model: torch._foreach_mul_([one.data for one in model.parameters()], 0.9),
    "of the head alone": of_the_head_alone,
}


@pytest.mark.parametrize("way", WAYS)
def test_uncounted_weights_are_weights(way: str) -> None:
    model = CLIPDetectorWithGradCAM(tiny_config()).eval()
    WAYS[way](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.explain({"image": images(1)}).untrained


@pytest.mark.parametrize("change", ["double", "bfloat16"])
def test_random_weights_of_another_type_are_random(change: str) -> None:
    model = CLIPDetectorWithGradCAM(tiny_config()).eval()
    getattr(model, change)()
    with pytest.warns(UserWarning, match="never trained"):
        assert model.explain({"image": images(1).to(model.head.weight.dtype)}).untrained
