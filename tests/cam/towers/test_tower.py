"""A model's tower is resolved once, kept with the model, and made anew where a module was added, replaced or moved."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.detectors import images, spread, tiny_detector
from utils.gradcam import InputError, explain, register_tower
from utils.gradcam_kit.engine.towers import FAMILIES
from utils.gradcam_kit.engine.towers.tower import tower_of


def plain_model() -> Any:
    """Images in, logits out, by the tower and the head of a tiny detector."""
    detector = tiny_detector()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = detector.backbone, detector.head

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.backbone(pixels)["pooler_output"])
            return logits

    return Plain().eval()


def blocks_of(model: Any) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def test_it_is_resolved_once() -> None:
    model = plain_model()
    explain(model, images(2))
    kept = tower_of(model)
    for target in ("fake", "real"):
        explain(model, images(3), layers=[0, -1], target=target)
        assert tower_of(model) is kept
    with torch.no_grad():
        model.head.weight.add_(1)  # weights are no structure
    assert tower_of(model) is kept


def test_a_known_model_is_walked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its modules nor its parameters, whatever the recipe and however many layers."""
    model, walks = tiny_detector(), []
    named_modules = nn.Module.named_modules

    def counted(module: nn.Module, *given: Any, **named: Any) -> Any:
        walks.append(module)
        return named_modules(module, *given, **named)

    asked: list[dict[str, Any]] = [
        {"layers": [0, 1, -1], "method": "gradcam"},
        {"layers": "sum", "method": "hirescam", "site": "residual", "backward": "balanced"},
        {"layers": -1, "method": "legrad"},
    ]
    for how in asked:
        model.explain(images(2), **how)
    monkeypatch.setattr(nn.Module, "named_modules", counted)
    for how in asked:
        model.explain(images(2), **how)
    assert walks == []


@pytest.mark.parametrize("change", ["added", "replaced", "moved", "taken out", "renamed"])
def test_it_is_made_anew(change: str) -> None:
    """The map is that of the changed model, as a copy of it that nobody has asked has it."""
    model = plain_model()
    explain(model, images(2))
    kept, blocks = tower_of(model), blocks_of(model)
    if change == "added":
        blocks.append(spread(copy.deepcopy(blocks[-1]), seed=5))
    elif change == "replaced":
        blocks[-1] = spread(copy.deepcopy(blocks[-1]), seed=5)
    elif change == "moved":
        blocks[0], blocks[-1] = blocks[-1], blocks[0]
    elif change == "taken out":
        del blocks[-1]
    else:
        model.projection = model._modules.pop("head")
        model.forward = lambda pixels: model.projection(model.backbone(pixels)["pooler_output"])
    found = explain(model, images(2), target="fake")
    assert tower_of(model) is not kept
    if change != "renamed":
        fresh = explain(copy.deepcopy(model), images(2), target="fake")
        assert torch.equal(found.logits, fresh.logits) and list(found.layers) == list(fresh.layers)
        assert torch.equal(found.heatmap, fresh.heatmap) and found.heatmap.any()


def test_copies_and_files_take_none_along() -> None:
    model = plain_model().backbone
    tower = tower_of(model)
    twin = copy.deepcopy(model)
    assert tower_of(twin).module is not tower.module and tower_of(twin).model is twin
    saved = io.BytesIO()
    torch.save(model, saved)
    assert b"gradcam_kit" not in saved.getvalue()
    saved.seek(0)
    assert tower_of(torch.load(saved, weights_only=False)).blocks == tower.blocks
    assert set(model.state_dict()) == set(twin.state_dict())


def test_only_a_family_is_registered() -> None:
    before = list(FAMILIES)
    for wrong in (nn.ReLU(), type(FAMILIES[0]), None):
        with pytest.raises(InputError, match="not a TowerFamily"):
            register_tower(wrong)  # type: ignore[arg-type]  # what a user might give
    assert before == FAMILIES
