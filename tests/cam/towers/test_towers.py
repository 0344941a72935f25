"""Which networks are recognised, where, and how the names of their layers are understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import ARCHITECTURE, BLOCKS, images
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.engine.layers import LayerError, block_names, site_of_layer
from utils.gradcam_kit.engine.spatial_layers import last_spatial_layer
from utils.gradcam_kit.engine.towers import FAMILIES, AttentionModules, Grid, family_of, find_tower
from utils.gradcam_kit.engine.towers.families import CNN, HF_CLIP
from utils.gradcam_kit.engine.towers.tower import tower_of


def vision_tower() -> Any:
    """The tower as the installed transformers builds it, without the wrapper of transformers 4."""
    tower = CLIPVisionModel(CLIPVisionConfig(**ARCHITECTURE))
    return getattr(tower, "vision_model", tower)


class Inside(nn.Module):
    """A network somewhere inside a module."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def wrapped_as_in_transformers_4() -> nn.Module:
    return Inside(vision_model=vision_tower())


def both_towers_of_clip() -> nn.Module:
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**ARCHITECTURE).to_dict())
    return CLIPModel(config)


@pytest.mark.parametrize("make", [vision_tower, wrapped_as_in_transformers_4, both_towers_of_clip])
def test_clip_is_found_in_every_layout(make: Any) -> None:
    model = Inside(feature_extractor=make(), stem=nn.Conv2d(3, 4, 3))
    tower = find_tower(model)
    family = family_of(tower)
    assert family is HF_CLIP
    assert block_names(tower) == [f"encoder.layers.{i}" for i in range(BLOCKS)]
    assert family.grid(tower, 64, 96) == Grid(4, 6, prefix=1)
    attention = family.attention(tower.get_submodule("encoder.layers.1"))
    assert isinstance(attention, AttentionModules) and attention.heads == ARCHITECTURE["num_attention_heads"]
    block = tower.get_submodule("encoder.layers.1.self_attn")
    assert [attention.q, attention.k, attention.v, attention.out] == [
        block.get_submodule(f"{name}_proj") for name in ("q", "k", "v", "out")
    ]


def test_the_grid_is_what_the_tower_really_makes() -> None:
    """Tokens of a forward pass, also for a size that is no multiple of the patch."""
    tower = vision_tower()
    for height, width in ((64, 64), (32, 96), (70, 79)):
        grid = HF_CLIP.grid(tower, height, width)
        assert grid is not None
        with torch.no_grad():
            patches = tower.embeddings.patch_embedding(torch.zeros(1, 3, height, width))
        assert (grid.rows, grid.columns) == tuple(patches.shape[2:])
    with torch.no_grad():
        tokens = tower(torch.zeros(1, 3, 64, 64)).last_hidden_state
    assert tokens.shape[1] == 1 + 16


def test_a_cnn_is_a_network_with_overlapping_windows() -> None:
    assert isinstance(family_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), CNN)
    patches_alone = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.Flatten(), nn.Linear(8, 2))
    for module in (patches_alone, nn.Linear(3, 2)):
        with pytest.raises(InputError) as caught:
            find_tower(module)
        for family in FAMILIES:
            assert family.name in str(caught.value) and family.signs in str(caught.value)


def test_two_towers_are_not_chosen_between() -> None:
    with pytest.raises(InputError, match=r"2 towers \(face, background\)"):
        find_tower(Inside(face=vision_tower(), background=vision_tower()))


class Scrambled(nn.Module):
    """Modules in another order than they run in, one that never runs, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Conv2d(8, 8, 3)
        self.late = nn.Conv2d(4, 8, 3)
        self.early = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.relu(self.late(self.relu(self.early(image))))
        return self.head(self.pool(maps).flatten(1))


def test_the_default_layer_of_a_cnn_is_the_last_whose_maps_reach_the_score() -> None:
    model, staged = Scrambled(), nn.Sequential()
    assert last_spatial_layer(model, lambda: model(torch.zeros(1, 3, 16, 16))).name == "relu"
    staged.add_module("stem", nn.Conv2d(3, 4, 3))
    staged.add_module("layer4", nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    staged.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    assert last_spatial_layer(staged, lambda: staged(torch.zeros(1, 3, 16, 16))).name == "layer4"
    assert not any(module._forward_hooks for module in staged.modules())
    with pytest.raises(InputError, match="expected logits"):
        last_spatial_layer(staged, lambda: None)


def test_names_may_begin_with_the_towers_own_path() -> None:
    tower: Any = vision_tower()
    model = nn.ModuleDict({"net": nn.ModuleDict({"vision": tower})})
    found = tower_of(model)
    assert found.module is tower and found.path == "net.vision"
    for prefix in ("", "net.vision.", "module.", "backbone.vision_model."):
        site = site_of_layer(found, f"{prefix}encoder.layers.2", "residual")
        assert site.module is tower.get_submodule("encoder.layers.2") and site.reads_input
    with pytest.raises(LayerError, match=r"text_model\.encoder"):  # another part's block is not this one's
        site_of_layer(found, "text_model.encoder.layers.0", "residual")


def test_prefixes_of_checkpoints_and_ddp_are_accepted(detector: CLIPDetectorWithGradCAM) -> None:
    data = {"image": images(2)}
    plain = detector.generate_gradcam(data, layers=["encoder.layers.1"])["encoder.layers.1"]
    for prefix in ("backbone.", "vision_model.", "module.", "module.backbone.vision_model."):
        name = f"{prefix}encoder.layers.1"
        assert torch.equal(detector.generate_gradcam(data, layers=[name])[name], plain)
