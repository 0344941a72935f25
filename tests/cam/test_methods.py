"""Every registered method against its formula in float64, and what all of them have in common."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.method_tester import TESTERS, MethodTester
from tests.helpers.references.method_references import ATTENTION_REFERENCES, TOKEN_REFERENCES
from utils.gradcam_kit.base.allowed import METHOD_NAMES
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.attention import ATTENTION_METHODS
from utils.gradcam_kit.engine.methods import METHODS, check_method
from utils.gradcam_kit.engine.recipe import ATTENTION_SITE, sites_of


@pytest.fixture(params=TESTERS)
def tester(request: pytest.FixtureRequest) -> MethodTester:
    return TESTERS[request.param]


def test_every_method_has_a_reference_and_every_reference_a_method() -> None:
    assert set(TOKEN_REFERENCES) == set(METHODS) and set(ATTENTION_REFERENCES) == set(ATTENTION_METHODS)
    others = {"contrast", "contrast_z"}  # takes real tokens, too: tests/explaining/test_contrast.py
    assert set(TESTERS) | others == set(METHOD_NAMES) and len(set(METHOD_NAMES)) == len(METHOD_NAMES)
    assert all(name == method.name for name, method in ATTENTION_METHODS.items())


@pytest.mark.parametrize("seed", range(5))
def test_maps_equal_the_formula(tester: MethodTester, seed: int) -> None:
    tester.check_reference(tester.inputs(seed=seed), 1e-10)


def test_a_batch_gives_what_its_images_give_alone(tester: MethodTester) -> None:
    tester.check_batch_equals_singles()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_are_computed_in_float32_at_least(tester: MethodTester, dtype: torch.dtype) -> None:
    tester.check_dtype(dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")
def test_maps_stay_on_their_device(tester: MethodTester) -> None:
    tester.check_device("cuda")


def test_evidence_of_both_signs(tester: MethodTester) -> None:
    tester.check_both_signs()


@pytest.mark.parametrize("name", [name for name, tester in TESTERS.items() if tester.reads_gradient])
def test_gradients_of_zero(name: str) -> None:
    TESTERS[name].check_zero_gradient()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tester: MethodTester, value: float) -> None:
    tester.check_nan(value)


@pytest.mark.parametrize("name", ["hirescan", "layer-cam", "LeGrad"])
def test_unknown_methods_are_answered_with_the_closest(name: str) -> None:
    with pytest.raises(InputError, match="did you mean '(hirescam|layercam|legrad)"):
        check_method(name)


def test_sites_at_which_a_method_has_maps() -> None:
    assert sites_of("hirescam", ["layer_norm1", "residual"]) == ["layer_norm1", "residual"]
    assert sites_of("legrad", ["layer_norm1", "residual"]) == sites_of("rollout", []) == [ATTENTION_SITE]
