"""The engine against plain autograd in float64, against torchcam, and what it does to the model (nothing)."""

from __future__ import annotations

import copy
from typing import Any, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers import reference_clip as reference
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, PATCH, PIXELS, pictures, tiny_detector
from utils.cam.layers import LayerError
from utils.cam.maps import NonFiniteMapError
from utils.errors import InputError

GRID = (PIXELS // PATCH, PIXELS // PATCH)
DEEP = ("encoder.layers.1.mlp.fc2", "encoder.layers.2.self_attn.v_proj", "encoder.layers.0.layer_norm2", "pre_layrnorm")
BLOCK_NAMES = tuple(f"encoder.layers.{i}" for i in range(BLOCKS))
COEFFICIENTS = {"real": [1.0, 0.0], "fake": [0.0, 1.0], "margin": [-1.0, 1.0]}


def reference_maps(
    model: CLIPDetectorWithGradCAM, image: Tensor, names: Sequence[str], site: str, method: str, coefficients: Any
) -> dict[str, np.ndarray]:
    tower = reference.reference_gradients(
        model.state_dict(), image, BLOCKS, ARCHITECTURE["num_attention_heads"], PATCH, coefficients
    )
    maps = {}
    for name in names:
        if name not in BLOCK_NAMES:
            tokens = tower.points[name]
        else:
            tokens = tower.points[f"{name}.layer_norm1"] if site == "layer_norm1" else tower.inputs[name]
        assert tokens.grad is not None
        per_picture = []
        for tokens_one, gradient_one in zip(tokens, tokens.grad):
            A, G = reference.grid_of(tokens_one, GRID), reference.grid_of(gradient_one, GRID)
            if method == "gradcam":
                per_picture.append(reference.grad_cam(A, G))
            else:
                per_picture.append(reference.grad_cam_pp(A, G, 0.0 if method.endswith("0") else 0.1))
        maps[name] = np.stack(per_picture)
    return maps


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "gradcam++ epsilon 0"])
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("target", ["predicted", "fake", "real", "label", "margin"])
def test_maps_equal_plain_autograd_in_float64(count: int, method: str, site: str, target: str) -> None:
    model = tiny_detector(gradcam_pp_epsilon=0.0 if method.endswith("0") else 0.1)
    image = pictures(count)
    label = torch.tensor([1, 0, 2, 0, 1])[:count]
    names = (*BLOCK_NAMES, *DEEP)
    with torch.no_grad():
        predicted = model({"image": image})["cls"].argmax(1).tolist()
    classes = {"predicted": predicted, "label": (label > 0).long().tolist()}.get(target)
    coefficients = (
        [COEFFICIENTS["fake" if one else "real"] for one in classes] if classes else [COEFFICIENTS[target]] * count
    )
    expected = reference_maps(model, image, names, site, method, coefficients)

    in_float64 = copy.deepcopy(model).double()
    for one, dtype, tolerance in ((in_float64, torch.float64, 1e-9), (model, torch.float32, 1e-4)):
        explanation = one.explain(
            {"image": image.to(dtype), "label": label},
            layers=names,
            method=method.split(" ")[0],
            target=target,
            site=site,
        )
        for name in names:
            got = explanation.layers[name].raw
            assert got.dtype == dtype
            scale = np.abs(expected[name]).max() or 1.0  # a map without positive evidence is zero in both
            np.testing.assert_allclose(
                got.numpy() / scale, expected[name] / scale, rtol=0, atol=tolerance, err_msg=name
            )


def test_normalised_map_is_the_raw_one_resized_and_stretched(detector: CLIPDetectorWithGradCAM) -> None:
    import cv2

    maps = detector.explain({"image": pictures(12)}, layers=["encoder.layers.2"]).layers["encoder.layers.2"]
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

    image = pictures(4)
    layers = [f"detector.backbone.{name}.layer_norm1" for name in BLOCK_NAMES]
    ours = detector.explain({"image": image}, layers=BLOCK_NAMES, target="fake")
    with GradCAM(Logits(), target_layer=list(layers), reshape_transform=grid) as extractor:
        scores = extractor.model(image)
        theirs = extractor(1, scores, normalized=False)
    for name, cam in zip(BLOCK_NAMES, theirs):
        torch.testing.assert_close(ours.layers[name].raw, cam, rtol=1e-4, atol=1e-7)


def test_a_picture_alone_has_the_map_it_has_in_a_batch() -> None:
    model = tiny_detector().double()
    image = pictures(5).double()
    together = model.explain({"image": image}, layers=BLOCK_NAMES)
    for i in range(5):
        alone = model.explain({"image": image[i : i + 1]}, layers=BLOCK_NAMES)
        for name in BLOCK_NAMES:
            torch.testing.assert_close(alone.layers[name].raw[0], together.layers[name].raw[i], rtol=1e-9, atol=1e-14)


def test_order_and_company_of_layers_change_nothing() -> None:
    model = tiny_detector().double()
    data = {"image": pictures(2).double()}
    names = [*BLOCK_NAMES, *DEEP]
    forwards = model.explain(data, layers=names)
    backwards = model.explain(data, layers=names[::-1])
    assert list(backwards.layers) == names[::-1]
    for name in names:
        alone = model.explain(data, layers=[name]).layers[name].raw
        torch.testing.assert_close(forwards.layers[name].raw, alone, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(backwards.layers[name].raw, alone, rtol=1e-9, atol=1e-14)


def test_prefixes_of_checkpoints_and_ddp_are_accepted(detector: CLIPDetectorWithGradCAM) -> None:
    data = {"image": pictures(2)}
    plain = detector.generate_gradcam(data, layers=["encoder.layers.1"])["encoder.layers.1"]
    for prefix in ("backbone.", "vision_model.", "module.", "module.backbone.vision_model."):
        name = f"{prefix}encoder.layers.1"
        assert torch.equal(detector.generate_gradcam(data, layers=[name])[name], plain)


@pytest.mark.parametrize("size", [(64, 96), (32, 64), (96, 96)])
def test_other_picture_sizes_take_their_grid_from_the_tensor(size: tuple[int, int]) -> None:
    """Row and column of every patch, also on a grid that is not square, against plain autograd on interpolated positions."""
    model = tiny_detector().double()
    image = pictures(1, pixels=size).double()
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


# ------------------------------------------------------------------------------------------------- the model afterwards


def state_of(model: torch.nn.Module) -> Any:
    """Everything rule 1 promises to leave alone."""
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]
    parameters = [
        (one.requires_grad, None if one.grad is None else one.grad.clone(), one.detach().clone())
        for one in model.parameters()
    ]
    return modules, parameters, torch.get_rng_state(), torch.is_grad_enabled()


def assert_same_state(before: Any, after: Any) -> None:
    assert before[0] == after[0] and before[3] == after[3] and torch.equal(before[2], after[2])
    for (flag, grad, value), (flag_after, grad_after, value_after) in zip(before[1], after[1]):
        assert flag == flag_after and torch.equal(value, value_after)
        assert (grad is None and grad_after is None) or torch.equal(grad, grad_after)


def unusual_detector() -> CLIPDetectorWithGradCAM:
    """Training mode with one frozen, evaluating block, gradients half filled in, dropout that would draw numbers."""
    model = tiny_detector(backbone_config={"architecture": {**ARCHITECTURE, "attention_dropout": 0.3}})
    model.train()
    model.backbone.encoder.layers[1].eval()
    for parameter in model.backbone.encoder.layers[1].parameters():
        parameter.requires_grad_(False)
    model({"image": pictures(2)})["cls"].sum().backward()
    model.head.bias.grad = None
    return model


@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference_mode"])
def test_model_is_left_as_it_was(mode: str) -> None:
    model = unusual_detector()
    before = state_of(model)
    context = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    with context():
        maps = model.generate_gradcam({"image": pictures(2)}, layers=BLOCK_NAMES)
        inside = model.generate_gradcam({"image": pictures(2) + 0}, layers=BLOCK_NAMES)
    assert_same_state(before, state_of(model))
    assert all(not one.requires_grad for one in maps.values())
    expected = copy.deepcopy(model).eval().generate_gradcam({"image": pictures(2)}, layers=BLOCK_NAMES)
    for name in BLOCK_NAMES:  # evaluation mode inside, whatever the mode outside
        assert torch.equal(maps[name], expected[name]) and torch.equal(inside[name], expected[name])


class Injected(Exception):
    pass


@pytest.mark.parametrize(
    "where", [*[f"encoder.layers.{i}" for i in range(BLOCKS)], "post_layernorm", "backward", "method"]
)
def test_model_is_left_as_it_was_after_an_exception(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unusual_detector()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Injected

    if where == "backward":
        monkeypatch.setattr(torch.autograd, "grad", fail)
    elif where == "method":
        monkeypatch.setattr("utils.cam.methods.torch.einsum", fail)
    else:
        module = model.backbone.get_submodule(where)
        monkeypatch.setattr(module.layer_norm1 if where.startswith("encoder") else module, "forward", fail)
    before = state_of(model)
    with pytest.raises(Injected):
        model.generate_gradcam({"image": pictures(2)}, layers=BLOCK_NAMES)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
def test_logits_are_bit_identical_with_heatmaps_on_and_off(site: str) -> None:
    model = tiny_detector()
    image = pictures(5)
    model.disable_gradcam()
    with torch.no_grad():
        off = model({"image": image})
    model.enable_gradcam()
    with torch.no_grad():
        on = model({"image": image})
    explained = model.explain({"image": image}, layers=BLOCK_NAMES, site=site).prediction
    for key in ("cls", "prob", "feat"):
        assert torch.equal(off[key], on[key]) and torch.equal(off[key], explained[key])


def test_one_forward_and_one_backward_serve_all_layers_and_the_batch(
    detector: CLIPDetectorWithGradCAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards, backwards = [], []
    detector.head.register_forward_hook(lambda *args: forwards.append(1))
    plain = torch.autograd.grad

    def counted_grad(*args: Any, **kwargs: Any) -> Any:
        backwards.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    detector.explain({"image": pictures(5)}, layers=[*BLOCK_NAMES, *DEEP], method="gradcam++")
    assert len(forwards) == 1 and len(backwards) == 1


def saved_bytes(model: CLIPDetectorWithGradCAM, run: Any) -> int:
    """Bytes autograd keeps for backward, each storage once, parameters excluded."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    kept: list[Tensor] = []  # so that no storage is freed and counted again under the same address

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        run()
    return sum(seen.values())


def test_graph_begins_at_the_earliest_layer() -> None:
    """24 blocks, as ViT-L/14 has: layers 10 to 23 keep 14 blocks' tokens at most, layer 23 alone one block's attention."""
    model = tiny_detector(backbone_config={"architecture": {**ARCHITECTURE, "num_hidden_layers": 24}})
    image = pictures(4)
    full = saved_bytes(model, lambda: model({"image": image}))
    four = saved_bytes(
        model, lambda: model.explain({"image": image}, layers=[f"encoder.layers.{i}" for i in (23, 20, 15, 10)])
    )
    last = saved_bytes(model, lambda: model.explain({"image": image}, layers=["encoder.layers.23"]))
    assert four <= 0.48 * full, f"{four / full:.3f}"
    assert last <= 0.035 * full, f"{last / full:.4f}"


# ------------------------------------------------------------------------------------------------ never a blank map


def test_last_block_is_not_blank_and_its_output_is_refused(detector: CLIPDetectorWithGradCAM) -> None:
    last = f"encoder.layers.{BLOCKS - 1}"
    maps = detector.explain({"image": pictures(5)}, layers=[last], target="margin").layers[last]
    assert not maps.empty.all() and maps.signed.abs().amax() > 0
    for name in (f"{last}.mlp", f"{last}.mlp.fc2", f"{last}.self_attn", f"{last}.layer_norm2"):
        with pytest.raises(LayerError, match="CLS token") as caught:
            detector.explain({"image": pictures(5)}, layers=[name])
        assert name in str(caught.value) and "name the block itself" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("encoder.layers.9", "did you mean 'encoder.layers.3'"),
        ("encoder.layer.1", "encoder.layers.0 ... encoder.layers.3"),
        ("head", "is not in the detector's tower"),
        ("", "is not in the detector's tower"),
        ("post_layernorm", "has no patch tokens"),
        ("encoder", "passes on BaseModelOutput"),
    ],
)
def test_unusable_layer_names_are_explained(detector: CLIPDetectorWithGradCAM, name: str, says: str) -> None:
    with pytest.raises(LayerError) as caught:
        detector.explain({"image": pictures(1)}, layers=["encoder.layers.1", name])
    assert repr(name) in str(caught.value) and says in str(caught.value)


def test_a_layer_that_the_score_does_not_depend_on_is_refused(detector: CLIPDetectorWithGradCAM) -> None:
    with torch.no_grad():
        detector.head.weight.zero_()
    with pytest.raises(LayerError, match="exactly 0"):
        detector.explain({"image": pictures(2)}, layers=["encoder.layers.1"])


def test_nan_names_the_layer_and_the_pictures(detector: CLIPDetectorWithGradCAM) -> None:
    image = pictures(3)
    broken = torch.zeros(3, 1, 1)
    broken[1] = float("nan")
    detector.backbone.encoder.layers[2].layer_norm2.register_forward_hook(lambda m, i, output: output + broken)
    with pytest.raises(NonFiniteMapError, match=r"encoder.layers.1.*\[1\]") as caught:
        detector.explain({"image": image}, layers=["encoder.layers.1"], target="fake")
    assert caught.value.samples == (1,)


def test_a_map_without_positive_evidence_is_zero_and_flagged() -> None:
    """The map of `fake` and of `real` are opposites where the head is, so no patch can speak for both."""
    model = tiny_detector()
    with torch.no_grad():
        model.head.weight[0] = -model.head.weight[1]
    name, data = "encoder.layers.1", {"image": pictures(8)}
    both = [model.explain(data, layers=[name], target=target).layers[name] for target in ("fake", "real")]
    torch.testing.assert_close(both[0].signed, -both[1].signed)
    with torch.no_grad():  # the same token everywhere: evidence of one sign, without any range
        model.backbone.encoder.layers[1].layer_norm1.weight.zero_()
    for target in ("fake", "real"):
        maps = model.explain(data, layers=[name], target=target).layers[name]
        assert maps.signed.abs().amax() > 0
        assert maps.empty.all()
        assert torch.equal(maps.normalised, torch.zeros_like(maps.normalised))


# ------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "is missing"),
        ({"image": torch.zeros(1, 4, 3, 64, 64)}, "flatten"),
        ({"image": torch.zeros(3, 64, 64)}, "expected"),
        ({"image": torch.zeros(1, 1, 64, 64)}, "expected"),
        ({"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "normalised"),
        ({"image": torch.zeros(0, 3, 64, 64)}, "empty batch"),
        ({"image": torch.full((2, 3, 64, 64), float("nan"))}, r"image(s) [0, 1]"),
    ],
)
def test_unusable_pictures_are_refused(detector: CLIPDetectorWithGradCAM, data: Any, says: str) -> None:
    before = state_of(detector)
    with pytest.raises(InputError) as caught:
        detector.generate_gradcam(data)
    assert says in str(caught.value)
    assert_same_state(before, state_of(detector))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": ["fake"]}, "1 entries for a batch of 2"),
        ({"target": "fakes"}, "did you mean 'fake'"),
        ({"target": [0, 7]}, "target 7 is unknown"),
        ({"target": "label"}, "data_dict['label']"),
        ({"method": "grad-cam"}, "did you mean 'gradcam'"),
    ],
)
def test_unusable_arguments_are_refused(detector: CLIPDetectorWithGradCAM, arguments: Any, says: str) -> None:
    before = state_of(detector)
    with pytest.raises(InputError) as caught:
        detector.generate_gradcam({"image": pictures(2)}, **arguments)
    assert says in str(caught.value)
    assert_same_state(before, state_of(detector))


def test_targets_a_picture_mix_names_and_classes(detector: CLIPDetectorWithGradCAM) -> None:
    data = {"image": pictures(4)}
    mixed = detector.explain(data, layers=["encoder.layers.2"], target=["fake", 0, "margin", 1])
    assert mixed.target == ["fake", "real", "margin", "fake"]
    for i, name in enumerate(mixed.target):
        alone = detector.explain(data, layers=["encoder.layers.2"], target=name).layers["encoder.layers.2"].raw[i]
        torch.testing.assert_close(mixed.layers["encoder.layers.2"].raw[i], alone, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_the_forward_pass_not_the_map_arithmetic(dtype: torch.dtype) -> None:
    model = tiny_detector()
    data = {"image": pictures(4)}
    plain = model.explain(data, layers=BLOCK_NAMES, target="fake")
    with torch.autocast("cpu", dtype=dtype):
        half = model.explain(data, layers=BLOCK_NAMES, target="fake")
    for name in BLOCK_NAMES:
        maps = half.layers[name]
        assert maps.raw.dtype == torch.float32 and maps.normalised.dtype == torch.float32
        both = torch.stack([plain.layers[name].signed.flatten(), maps.signed.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.99
        assert F.cosine_similarity(both[:1], both[1:]) > 0.99
