"""What an explanation does to the model (nothing), to its logits (nothing), and what it costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, images, tiny_detector
from tests.helpers.model_state import assert_same_state, state_of
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam_kit.engine.frozen import patched

BLOCK_NAMES = tuple(f"encoder.layers.{i}" for i in range(BLOCKS))


def unusual_detector() -> CLIPDetectorWithGradCAM:
    """Training mode with one frozen, evaluating block, gradients half filled in, dropout that would draw numbers."""
    model = tiny_detector(backbone_config={"architecture": {**ARCHITECTURE, "attention_dropout": 0.3}})
    model.train()
    model.backbone.encoder.layers[1].eval()
    for parameter in model.backbone.encoder.layers[1].parameters():
        parameter.requires_grad_(False)
    model({"image": images(2)})["cls"].sum().backward()
    model.head.bias.grad = None
    return model


@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference_mode"])
def test_model_is_left_as_it_was(mode: str) -> None:
    model = unusual_detector()
    before = state_of(model)
    context = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    with context():
        maps = model.generate_gradcam({"image": images(2)}, layers=BLOCK_NAMES)
        inside = model.generate_gradcam({"image": images(2) + 0}, layers=BLOCK_NAMES)
    assert_same_state(before, state_of(model))
    assert all(not one.requires_grad for one in maps.values())
    expected = copy.deepcopy(model).eval().generate_gradcam({"image": images(2)}, layers=BLOCK_NAMES)
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
        monkeypatch.setattr("utils.gradcam_kit.engine.methods.weighted_sum", fail)
    else:
        module = model.backbone.get_submodule(where)
        monkeypatch.setattr(module.layer_norm1 if where.startswith("encoder") else module, "forward", fail)
    before = state_of(model)
    with pytest.raises(Injected):
        model.generate_gradcam({"image": images(2)}, layers=BLOCK_NAMES)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
def test_logits_are_bit_identical_with_heatmaps_on_and_off(site: str) -> None:
    model = tiny_detector()
    image = images(5)
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
    detector.explain({"image": images(5)}, layers=[*BLOCK_NAMES, "encoder.layers.1.mlp.fc2"], method="gradcam++")
    assert len(forwards) == 1 and len(backwards) == 1


def test_graph_begins_at_the_earliest_layer() -> None:
    """24 blocks, as ViT-L/14 has: layers 10 to 23 keep 14 blocks' tokens at most, layer 23 alone one block's attention."""
    model = tiny_detector(backbone_config={"architecture": {**ARCHITECTURE, "num_hidden_layers": 24}})
    image = images(4)
    full = saved_bytes(model, lambda: model({"image": image}))
    four = saved_bytes(
        model, lambda: model.explain({"image": image}, layers=[f"encoder.layers.{i}" for i in (23, 20, 15, 10)])
    )
    last = saved_bytes(model, lambda: model.explain({"image": image}, layers=["encoder.layers.23"]))
    assert four <= 0.48 * full, f"{four / full:.3f}"
    assert last <= 0.035 * full, f"{last / full:.4f}"


def test_a_patch_is_gone_afterwards_whatever_happened() -> None:
    class Owner:
        value = 1

    with patched(Owner, "value", 2):
        assert Owner.value == 2
    with pytest.raises(Injected), patched(Owner, "value", 3):
        raise Injected
    assert Owner.value == 1
