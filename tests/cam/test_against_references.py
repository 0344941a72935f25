"""Maps of a whole detector against plain autograd in float64, and against torchcam."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, images, tiny_detector
from tests.helpers.references import reference_clip as reference
from tests.helpers.references.method_references import TOKEN_REFERENCES, grad_cam_pp_of_the_paper

GRID = (PIXELS // PATCH, PIXELS // PATCH)
DEEP = ("encoder.layers.1.mlp.fc2", "encoder.layers.2.self_attn.v_proj", "encoder.layers.0.layer_norm2", "pre_layrnorm")
BLOCK_NAMES = tuple(f"encoder.layers.{i}" for i in range(BLOCKS))
COEFFICIENTS = {"real": [1.0, 0.0], "fake": [0.0, 1.0], "margin": [-1.0, 1.0]}
# In float32 too, where the others cancel (HiResCAM, behind a LayerNorm) or divide by a sum near zero (XGradCAM).
WELL_CONDITIONED = ("gradcam", "gradcam++", "gradcam++ epsilon 0", "layercam")
FORMULAS = {**TOKEN_REFERENCES, "gradcam++ epsilon 0": grad_cam_pp_of_the_paper}


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("target", ["predicted", "fake", "real", "label", "margin"])
def test_maps_equal_plain_autograd_in_float64(formula: str, site: str, target: str) -> None:
    model = tiny_detector(gradcam_pp_epsilon=0.0 if formula.endswith(" 0") else 0.1)
    image, label = images(5), torch.tensor([1, 0, 2, 0, 1])
    names = (*BLOCK_NAMES, *DEEP)
    with torch.no_grad():
        predicted = model({"image": image})["cls"].argmax(1).tolist()
    classes = {"predicted": predicted, "label": (label > 0).long().tolist()}.get(target)
    coefficients = (
        [COEFFICIENTS["fake" if one else "real"] for one in classes] if classes else [COEFFICIENTS[target]] * 5
    )
    tower = reference.reference_gradients(
        model.state_dict(), image, BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH, coefficients
    )
    runs = [(copy.deepcopy(model).double(), torch.float64, 1e-9)]
    if formula in WELL_CONDITIONED:
        runs.append((model, torch.float32, 1e-4))
    for detector, dtype, tolerance in runs:
        data = {"image": image.to(dtype), "label": label}
        method = formula.split(" ")[0]
        explanation = detector.explain(data, layers=names, method=method, target=target, site=site)
        for name in names:
            raw = explanation.layers[name].raw
            assert raw.dtype == dtype
            expected = reference.maps_of(tower, name, site, FORMULAS[formula], GRID)
            scale = np.abs(expected).max() or 1.0  # a map without positive evidence is zero in both
            np.testing.assert_allclose(raw.numpy() / scale, expected / scale, rtol=0, atol=tolerance, err_msg=name)


def test_normalised_map_is_the_raw_one_resized_and_stretched(detector: CLIPDetectorWithGradCAM) -> None:
    import cv2

    maps = detector.explain({"image": images(12)}, layers=["encoder.layers.2"]).layers["encoder.layers.2"]
    shown = (~maps.empty).nonzero().flatten().tolist()
    assert len(shown) >= 4
    for i in shown:
        resized = cv2.resize(
            maps.raw[i].numpy(), (PIXELS, PIXELS), interpolation=cv2.INTER_LINEAR
        )  # half-pixel centres
        expected = (resized - resized.min()) / (resized.max() - resized.min())
        normalised = maps.normalised[i].numpy()
        np.testing.assert_allclose(normalised, expected, atol=1e-5)
        assert normalised.min() == 0 and normalised.max() == 1 and normalised.dtype == np.float32
    for i in set(range(12)) - set(shown):
        assert not maps.raw[i].any() and not maps.normalised[i].any()


def test_grad_cam_equals_torchcam(detector: CLIPDetectorWithGradCAM) -> None:
    from torchcam.methods import GradCAM

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, image: Tensor) -> Tensor:
            return self.detector({"image": image})["cls"]

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, GRID)

    image = images(4)
    layers = [f"detector.backbone.{name}.layer_norm1" for name in BLOCK_NAMES]
    ours = detector.explain({"image": image}, layers=BLOCK_NAMES, target="fake")
    with GradCAM(Logits(), target_layer=list(layers), reshape_transform=grid) as extractor:
        scores = extractor.model(image)
        theirs = extractor(1, scores, normalized=False)
    for name, cam in zip(BLOCK_NAMES, theirs, strict=True):
        torch.testing.assert_close(ours.layers[name].raw, cam, rtol=1e-4, atol=1e-7)


def test_a_image_alone_has_the_map_it_has_in_a_batch() -> None:
    model = tiny_detector().double()
    image = images(5).double()
    together = model.explain({"image": image}, layers=BLOCK_NAMES)
    for i in range(5):
        alone = model.explain({"image": image[i : i + 1]}, layers=BLOCK_NAMES)
        for name in BLOCK_NAMES:
            torch.testing.assert_close(alone.layers[name].raw[0], together.layers[name].raw[i], rtol=1e-9, atol=1e-14)


def test_order_and_company_of_layers_change_nothing() -> None:
    model = tiny_detector().double()
    data = {"image": images(2).double()}
    names = [*BLOCK_NAMES, *DEEP]
    forwards = model.explain(data, layers=names)
    backwards = model.explain(data, layers=names[::-1])
    assert list(backwards.layers) == names[::-1]
    for name in names:
        alone = model.explain(data, layers=[name]).layers[name].raw
        torch.testing.assert_close(forwards.layers[name].raw, alone, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(backwards.layers[name].raw, alone, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("size", [(64, 96), (32, 64), (96, 96)])
def test_other_image_sizes_take_their_grid_from_the_tensor(size: tuple[int, int]) -> None:
    """Row and column of every patch, also on a grid that is not square, against plain autograd on interpolated positions."""
    model = tiny_detector().double()
    image = images(1, pixels=size).double()
    name, kept = "encoder.layers.2", {}

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept["tokens"] = output.detach().requires_grad_()
        return kept["tokens"]

    handle = model.backbone.encoder.layers[2].layer_norm1.register_forward_hook(keep)
    pooled = model.backbone(image, interpolate_pos_encoding=True)["pooler_output"]
    handle.remove()
    gradient = torch.autograd.grad(model.head(pooled)[0, 1], kept["tokens"])[0][0]
    tokens = kept["tokens"].detach()[0]
    rows, columns = size[0] // PATCH, size[1] // PATCH
    weights = gradient[1:].mean(0)
    maps = model.explain({"image": image}, layers=[name], target="fake").layers[name]
    assert maps.grid == (rows, columns)
    assert maps.normalised.shape == (1, *size)
    for row in range(rows):
        for column in range(columns):
            expected = (weights @ tokens[1 + row * columns + column]).clamp(min=0)
            torch.testing.assert_close(maps.raw[0, row, column], expected, rtol=1e-9, atol=1e-14)


def test_what_the_residual_streams_mean_over_channels_decides() -> None:
    """Nothing, since every reader begins with LayerNorm. HiResCAM and Grad-CAM agree; LayerCAM and Grad-CAM++ do not."""
    model, image, name = tiny_detector().double(), images(2).double(), BLOCK_NAMES[1]

    def maps(method: str) -> tuple[Tensor, Tensor]:
        explained = model.explain({"image": image}, layers=[name], method=method, site="residual", target="fake")
        return explained.logits, explained.layers[name].signed

    before = {method: maps(method) for method in ("gradcam", "hirescam", "layercam", "gradcam++")}
    lift = torch.linspace(0, 5, GRID[0] * GRID[1] + 1, dtype=torch.float64).view(
        1, -1, 1
    )  # of every channel of a token
    handle = model.backbone.encoder.layers[1].register_forward_pre_hook(
        lambda _, inputs: (inputs[0] + lift, *inputs[1:])
    )
    for method, (logits, signed) in before.items():
        lifted_logits, lifted = maps(method)
        torch.testing.assert_close(lifted_logits, logits, rtol=1e-9, atol=1e-9)
        same = torch.allclose(lifted, signed, rtol=0, atol=1e-9 * float(signed.abs().max()))
        assert same == (method in ("gradcam", "hirescam")), method
    handle.remove()


def test_targets_a_image_mix_names_and_classes(detector: CLIPDetectorWithGradCAM) -> None:
    data = {"image": images(4)}
    mixed = detector.explain(data, layers=["encoder.layers.2"], target=["fake", 0, "margin", 1])
    assert mixed.target == ["fake", "real", "margin", "fake"]
    for i, name in enumerate(mixed.target):
        alone = detector.explain(data, layers=["encoder.layers.2"], target=name).layers["encoder.layers.2"].raw[i]
        torch.testing.assert_close(mixed.layers["encoder.layers.2"].raw[i], alone, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_the_forward_pass_not_the_map_arithmetic(dtype: torch.dtype) -> None:
    model = tiny_detector()
    data = {"image": images(4)}
    plain = model.explain(data, layers=BLOCK_NAMES, target="fake")
    with torch.autocast("cpu", dtype=dtype):
        half = model.explain(data, layers=BLOCK_NAMES, target="fake")
    for name in BLOCK_NAMES:
        maps = half.layers[name]
        assert maps.raw.dtype == torch.float32 and maps.normalised.dtype == torch.float32
        both = torch.stack([plain.layers[name].signed.flatten(), maps.signed.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.99
        assert F.cosine_similarity(both[:1], both[1:]) > 0.99
