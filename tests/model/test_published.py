"""Detectors as they are published: a folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.detectors import images
from utils.gradcam import InputError, load
from utils.gradcam_kit.settings.published import published_folder

LABELS = [
    (["Realism", "Deepfake"], [False, True]),
    (["Deepfake", "Realism"], [True, False]),
    (["ai", "hum"], [True, False]),
    (["artificial", "human"], [True, False]),
    (["human", "artificial"], [False, True]),
    (["Fake", "Real"], [True, False]),
    (["authentic", "AI-generated"], [False, True]),
    (["not_real", "real"], [True, False]),
    (["Real", "StyleGAN_Fake", "Diffusion_Fake"], [False, True, True]),
    (["synthetic", "original"], [True, False]),
]


def published(folder: Path, labels: list[str]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    named = dict(enumerate(labels))
    config = ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, patch_size=16,
                       image_size=48, id2label=named, label2id={name: i for i, name in named.items()})  # fmt: skip
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    said = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


@pytest.mark.parametrize(("labels", "fake"), LABELS, ids=lambda value: "-".join(map(str, value)))
def test_real_and_fake_are_read_from_the_names(labels: list[str], fake: list[bool], tmp_path: Path) -> None:
    theirs = published(tmp_path, labels)
    model = load(f"hf:{tmp_path}", device="cpu")
    assert (model.usual_size, model.gradcam.mean, model.gradcam.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    x = images(3, pixels=48)
    with torch.no_grad():
        probability = theirs(x).logits.softmax(dim=1)
    found = model.explain({"image": x}, target="fake")
    torch.testing.assert_close(found.prob_fake, probability[:, torch.tensor(fake)].sum(dim=1))


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["cat", "real"], ["real", "authentic"]])
def test_names_that_do_not_say_are_asked_for(labels: list[str], tmp_path: Path) -> None:
    published(tmp_path, labels)
    with pytest.raises(InputError, match="set gradcam_classes"):
        load(f"hf:{tmp_path}", device="cpu")
    model = load(f"hf:{tmp_path}", device="cpu", gradcam_classes=[{labels[0]: "real"}, {labels[1] + " x": "fake"}])
    assert list(model.gradcam.classes.values()) == [False, True]


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        load(f"hf:{tmp_path / 'gone'}", device="cpu")
    with pytest.raises(InputError, match="cannot be read"):
        load(f"hf:{tmp_path}", device="cpu")


@pytest.mark.parametrize("name", ["hf:someone/some-detector", "hf:a-b/c.d_e", "hf:org/name-2.1"])
def test_a_hub_that_cannot_be_reached_is_said(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="no such folder, and the hub cannot be reached"):
        published_folder(name)


@pytest.mark.parametrize("name", ["hf:", "hf:resnet50", "hf:a/b/c", "hf:https://hub.example/a/b", "hf:a/b@main"])
def test_what_is_no_name_of_a_hub_asks_for_a_folder(name: str) -> None:
    with pytest.raises(InputError, match=r"no folder .*; give a folder with a config\.json and weights"):
        published_folder(name)
