"""The last block for the class token alone: the same maps from less, and the full block where the head reads more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cam.whole_block import take_the_whole_block
from tests.helpers.detectors import images, tiny_detector
from tests.helpers.saved_bytes import saved_bytes
from utils.gradcam import explain
from utils.gradcam_kit.engine import tokens
from utils.gradcam_kit.engine.maps import NonFiniteMapError
from utils.gradcam_kit.engine.methods import METHODS
from utils.gradcam_kit.engine.towers.tower import tower_of

LAST = "encoder.layers.3"
LAYERS = ["encoder.layers.1", LAST]


def in_full(monkeypatch: pytest.MonkeyPatch, model: Any, image: Tensor, **asked: Any) -> Any:
    """The same by the whole block."""
    with monkeypatch.context() as patched:
        take_the_whole_block(patched)
        return model.explain({"image": image}, **asked)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_whole_block(
    monkeypatch: pytest.MonkeyPatch, method: str, site: str, backward: str, dtype: torch.dtype, share: float
) -> None:
    """To this share of the peak."""
    model, image = tiny_detector().to(dtype), images(3).to(dtype)
    asked: dict[str, Any] = {"layers": LAYERS, "method": method, "site": site, "backward": backward, "target": "margin"}
    found, full = model.explain({"image": image}, **asked), in_full(monkeypatch, model, image, **asked)
    assert torch.equal(found.logits, full.logits) and torch.equal(found.logits, model({"image": image})["cls"])
    for layer, maps in found.layers.items():
        peak = full.layers[layer].signed.abs().max()
        if not full.layers[layer].artefact.all():  # what is left of sums that are 0 has no digits to compare
            torch.testing.assert_close(maps.signed, full.layers[layer].signed, rtol=0, atol=share * float(peak))
    for layer, tested in full.completeness.items():
        torch.testing.assert_close(found.completeness[layer].error, tested.error, rtol=0, atol=share)
    assert not tower_of(model).reads_more_tokens


def test_an_image_of_nan_gradients_says_nothing_of_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and the images beside it still go by the path."""
    gradients = tokens.score_gradients

    def poisoned(*given: Any, **options: Any) -> Any:
        found: Any = gradients(*given, **options)
        for G in found:
            G[1] = float("nan")
        return found

    monkeypatch.setattr(tokens, "score_gradients", poisoned)
    model = tiny_detector()
    with pytest.raises(NonFiniteMapError) as refused:
        model.explain({"image": images(3)}, target="fake")
    assert refused.value.samples == (1,) and not tower_of(model).reads_more_tokens


def test_less_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = tiny_detector(), images(8)

    def kept(layers: list[str], backward: str) -> int:
        return saved_bytes(model, lambda: model.explain({"image": image}, layers=layers, backward=backward))

    def kept_in_full(layers: list[str], backward: str) -> int:
        return saved_bytes(model, lambda: in_full(monkeypatch, model, image, layers=layers, backward=backward))

    assert kept([LAST], "plain") < 0.5 * kept_in_full([LAST], "plain")
    assert kept(LAYERS, "plain") < 0.85 * kept_in_full(LAYERS, "plain")


class MeanOfPatches(nn.Module):
    """In place of the class token's norm: it gets the pooled token, and the tower's output is pooled otherwise."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.head = model.backbone, model.head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.tower(image)["last_hidden_state"][:, 1:].mean(dim=1))


def test_a_head_that_pools_patches_has_the_whole_block() -> None:
    """Against plain autograd, in a model of which nothing says what its head reads."""
    model, image = MeanOfPatches(tiny_detector()).double().eval(), images(2).double()
    block = model.tower.get_submodule(LAST)
    kept: list[Tensor] = []
    handle = block.layer_norm1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(image)[:, 1].sum(), kept)
    handle.remove()
    expected = (gradient * kept[0]).sum(dim=2)[:, 1:].unflatten(1, (4, 4))
    for _ in range(2):  # the first call finds out, the second knows
        found = explain(model, image, layers=[LAST], method="hirescam", target="fake")
        torch.testing.assert_close(found.layers[LAST].signed, expected, rtol=1e-9, atol=1e-12)
        assert tower_of(model).reads_more_tokens and tower_of(model).module is model.tower


def test_a_head_that_is_exchanged_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = tiny_detector(), images(2)
    model.explain({"image": image}, layers=[LAST])
    pooled = model.backbone.forward

    def mean_of_all(*given: Any, **options: Any) -> Any:
        output = pooled(*given, **options)
        output["pooler_output"] = output["last_hidden_state"].mean(dim=1)
        return output

    monkeypatch.setattr(model.backbone, "forward", mean_of_all)
    found, full = model.explain({"image": image}, layers=[LAST]), in_full(monkeypatch, model, image, layers=[LAST])
    assert torch.equal(found.layers[LAST].signed, full.layers[LAST].signed)
    assert tower_of(model).reads_more_tokens


def test_what_is_read_further_in_has_the_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, layer = tiny_detector().double(), images(2).double(), f"{LAST}.self_attn.v_proj"
    found, full = model.explain({"image": image}, layers=[layer]), in_full(monkeypatch, model, image, layers=[layer])
    assert torch.equal(found.layers[layer].signed, full.layers[layer].signed)
