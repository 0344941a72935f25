"""The last block for the class token alone, in the towers of each family, against the whole block's gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cam.towers.test_tower_families import FAMILIES, detector_of
from tests.cam.whole_block import take_the_whole_block
from tests.helpers.detectors import images
from utils.gradcam import explain
from utils.gradcam_kit.engine import hooks
from utils.gradcam_kit.engine.hooks import ClassTokenPath
from utils.gradcam_kit.engine.towers.tower import tower_of
from utils.gradcam_kit.explaining import capture

WITH_PATH = ["HF CLIP", "HF CLIP with LoRA", "HF ViT", "HF DINOv2", "HF DINOv2 with registers", "OpenAI clip",
             "open_clip", "open_clip, (T, B, C)", "timm ViT"]  # fmt: skip
# Their heads read the class token, but what they turn by angles, or what their head pools, has the whole block.
WITHOUT = ["HF DINOv3", "timm EVA-02", "timm DINOv3", "timm ViT, q and k normalised", "HF SigLIP"]


class ReadsTheFirst(nn.Module):
    """A linear head on the class token of a tower that returns all tokens, or on what it returns in its place."""

    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.tower(pixels)
        if not isinstance(found, Tensor):
            found = found.last_hidden_state[:, 0]
        logits: Tensor = self.head(found)
        return logits


def detector(name: str) -> ReadsTheFirst:
    made = detector_of(FAMILIES[name].make, FAMILIES[name].pixels)
    return ReadsTheFirst(made.tower, made.head).eval()


def asked_of(name: str, model: ReadsTheFirst, **asked: Any) -> dict[str, Any]:
    """The last block of that family's tower, by its name in the tower."""
    block = tower_of(model).blocks[-1]
    return {"images": images(2, pixels=FAMILIES[name].pixels).double(), "layers": [block], "method": "gradcam", **asked}


def explained(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **asked: Any) -> tuple[Any, list[Any]]:
    """The explanation, and the paths that were tried."""
    paths: list[ClassTokenPath | None] = []

    def path_of(*given: Any) -> ClassTokenPath | None:
        paths.append(hooks.class_token_path(*given))
        return paths[-1]

    with monkeypatch.context() as patched:
        patched.setattr(capture, "class_token_path", path_of)
        return explain(model, target="margin", **asked), paths


def in_full(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **asked: Any) -> Any:
    with monkeypatch.context() as patched:
        take_the_whole_block(patched)
        return explain(model, target="margin", **asked)


@pytest.mark.parametrize("backward", ["plain", "balanced"])
@pytest.mark.parametrize("site", ["layer_norm1", "residual"])
@pytest.mark.parametrize("name", WITH_PATH)
def test_maps_are_those_of_the_whole_block(
    monkeypatch: pytest.MonkeyPatch, name: str, site: str, backward: str
) -> None:
    model = detector(name)
    asked = asked_of(name, model, site=site, backward=backward)
    full = in_full(monkeypatch, model, **asked)
    found, paths = explained(monkeypatch, model, **asked)
    assert paths[0] is not None and paths[0].joined is not None and len(paths) == 1
    assert not tower_of(model).reads_more_tokens
    if FAMILIES[name].exact:
        assert torch.equal(found.logits, full.logits)
    (layer,) = found.layers
    peak = float(full.layers[layer].signed.abs().max())
    assert peak > 0
    torch.testing.assert_close(found.layers[layer].signed, full.layers[layer].signed, rtol=0, atol=1e-12 * peak)
    alone, _ = explained(monkeypatch, model, **{**asked, "images": asked["images"][1:]})
    torch.testing.assert_close(alone.layers[layer].signed, found.layers[layer].signed[1:], rtol=0, atol=1e-12 * peak)


@pytest.mark.parametrize("name", WITHOUT)
def test_others_have_the_whole_block(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = detector(name)
    asked = asked_of(name, model)
    full = in_full(monkeypatch, model, **asked)
    found, paths = explained(monkeypatch, model, **asked)
    assert all(path is None or path.joined is None or tower_of(model).reads_more_tokens for path in paths)
    (layer,) = found.layers
    assert torch.equal(found.layers[layer].signed, full.layers[layer].signed)
