"""Compiled parts, gradient checkpointing and fused kernels are off within a call and back afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.cam.towers.test_tower_families import TorchEncoder, detector_of
from tests.helpers.detectors import images, tiny_detector
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError

LAYERS = ["encoder.layers.3", "encoder.layers.1"]
METHODS = ("gradcam", "legrad", "rollout")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_are_run_once(reentrant: bool) -> None:
    plain, model, pixels = tiny_detector(), tiny_detector(), images(2)
    blocks: Any = model.backbone.encoder.layers
    for block in blocks:
        block.forward = lambda *arguments, _of=block.forward, **options: checkpoint(
            lambda *tensors: _of(*tensors, **options), *arguments, use_reentrant=reentrant
        )
    before = dict(vars(torch.utils.checkpoint))
    for method in METHODS:
        expected = plain.explain({"image": pixels}, layers=LAYERS, target="fake", method=method).layers
        found = model.explain({"image": pixels}, layers=LAYERS, target="fake", method=method).layers
        for layer in LAYERS:
            torch.testing.assert_close(found[layer].signed, expected[layer].signed, rtol=0, atol=1e-7)
    assert dict(vars(torch.utils.checkpoint)) == before


@pytest.mark.parametrize("how", ["compile(module)", "module.compile()"])
def test_the_module_inside_a_compiled_one_is_used(how: str) -> None:
    plain, model, pixels = tiny_detector(), tiny_detector(), images(2)
    if how == "compile(module)":
        model.backbone = torch.compile(model.backbone, backend="eager")
    else:
        model.backbone.compile(backend="eager")
    compiled = model.backbone
    with torch.no_grad():
        model({"image": pixels})  # compiled by the time it is explained
    for method in METHODS:
        expected = plain.explain({"image": pixels}, layers=LAYERS, target="fake", method=method).layers
        for prefix in ("", "backbone.", "_orig_mod."):
            names = [prefix + layer for layer in LAYERS]
            found = model.explain({"image": pixels}, layers=names, target="fake", method=method).layers
            for name, layer in zip(names, LAYERS, strict=True):
                torch.testing.assert_close(found[name].signed, expected[layer].signed, rtol=0, atol=1e-6)
    assert model.backbone is compiled


def test_the_fast_path_is_on_again_afterwards() -> None:
    model = detector_of(TorchEncoder)
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        explain(model, images(1).double(), layers=["tower.encoder.layers.1"], method="rollout", target="fake")
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("method", METHODS)
def test_a_tower_that_runs_twice_is_refused_by_every_method(method: str) -> None:
    class TwoViews(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = tiny_detector()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            mean: torch.Tensor = (self.one({"image": pixels})["cls"] + self.one({"image": pixels.flip(3)})["cls"]) / 2
            return mean

    with pytest.raises(InputError, match="runs more than once"):
        explain(TwoViews().eval(), images(1), layers=["encoder.layers.3"], method=method, target="fake")


def test_an_attention_with_a_bias_nobody_knows_of_is_no_rollout() -> None:
    """LeGrad needs no probabilities, and stays right."""

    class Masked(TorchEncoder):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            patches = self.patch(pixels).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls.expand(len(patches), 1, -1), patches], dim=1)
            mask = torch.triu(torch.full((17, 17), -1e9, dtype=tokens.dtype), diagonal=1).flip(0, 1)
            last: torch.Tensor = self.encoder(tokens, mask=mask)[:, 0]
            return last

    model = detector_of(Masked)
    with pytest.raises(InputError, match="does not attend by softmax"):
        explain(model, images(1).double(), layers=["tower.encoder.layers.1"], method="rollout", target="fake")


def test_blocks_with_their_norms_behind_are_named() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.TransformerEncoder(layer, 2))
    with pytest.raises(
        InputError, match=r"2 blocks 1\.layers\.0 \.\.\. 1\.layers\.1 were found, whose norms come after"
    ):
        explain(model, images(1), target="fake")
