"""CLIPDetectorWithGradCAM: the contract of its constructor, its predictions, its images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from detectors import DETECTOR, CLIPDetector
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.datasets import read_image
from tests.helpers.detectors import ARCHITECTURE, PIXELS, images, tiny_config, tiny_detector
from tests.helpers.paths import ROOT
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.model.clip_tower import KNOWN_TOWERS, hidden_act


def whole_clip() -> CLIPModel:
    """A tiny CLIP of both towers, as the hub has it."""
    torch.manual_seed(3)
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(), vision_config=CLIPVisionConfig(**ARCHITECTURE).to_dict()
    )
    return CLIPModel(config)


def assert_tower_is(model: CLIPDetectorWithGradCAM, file: Path) -> None:
    """Every vision weight on disk is the tower's, by the numbers in the file."""
    saved = {
        key.partition("vision_model.")[2] or key: value for key, value in load_file(file).items() if "text" not in key
    }
    state = model.backbone.state_dict()
    compared = [key for key in state if not key.endswith("position_ids")]
    assert len(compared) > 50
    for key in compared:
        assert torch.equal(state[key], saved[key]), key


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel"])
def test_tower_from_a_local_folder(kind: str, tmp_path: Path) -> None:
    clip = whole_clip() if kind == "CLIPModel" else CLIPVisionModel(CLIPVisionConfig(**ARCHITECTURE))
    clip.save_pretrained(tmp_path)
    model = CLIPDetectorWithGradCAM(tiny_config(backbone_config={"name_or_path": str(tmp_path)}))
    assert_tower_is(model, tmp_path / "model.safetensors")
    assert model.head.in_features == ARCHITECTURE["hidden_size"] and model.head.out_features == 2


def test_incomplete_tower_is_refused(tmp_path: Path) -> None:
    clip = CLIPVisionModel(CLIPVisionConfig(**ARCHITECTURE))
    state = {key: value for key, value in clip.state_dict().items() if "layers.2.mlp" not in key}
    clip.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match=r"lack .*layers\.2\.mlp"):
        CLIPDetectorWithGradCAM(tiny_config(backbone_config={"name_or_path": str(tmp_path)}))


SEED_EXAMPLE = """
import torch
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

config = {
    'loss_func': 'cross_entropy_loss',
    'gradcam_enabled': True,
    'gradcam_layers': ['encoder.layers.3', 'encoder.layers.2'],
    'gradcam_save_dir': './my_gradcam_output'
}
model = CLIPDetectorWithGradCAM(config)
model.eval()
your_image_tensor = torch.randn(2, 3, 64, 64)
data_dict = {'image': your_image_tensor}
cams = model.generate_gradcam(data_dict, save_visualizations=True, filename_prefix="my_analysis")
for name, cam in cams.items():
    print(name, tuple(cam.shape), cam.dtype, float(cam.min()), float(cam.max()), cam.requires_grad)
"""


@pytest.mark.slow
def test_four_keys_suffice_where_the_hub_has_the_tower(tmp_path: Path) -> None:
    """The documented example, with a tiny CLIP standing in the hub's cache under the default name."""
    cache = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    whole_clip().save_pretrained(cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SEED_EXAMPLE], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"encoder.layers.{i} (2, 64, 64) torch.float32 0.0 1.0 False" for i in (3, 2)]
    saved = {path.name for path in (tmp_path / "my_gradcam_output").iterdir()}
    assert saved == {
        f"my_analysis_{what}_sample{i}.png"
        for i in (0, 1)
        for what in ("encoder.layers.3", "encoder.layers.2", "comparison")
    }
    empty = {**env, "HF_HUB_CACHE": str(tmp_path / "nothing")}
    done = subprocess.run(
        [sys.executable, "-c", SEED_EXAMPLE], cwd=tmp_path, env=empty, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "InputError" in last and "openai/clip-vit-large-patch14" in last and "local folder" in last


def test_prediction_is_the_host_detectors_own_bit_for_bit() -> None:
    """The host's class around the very same tower and head."""

    class Host(CLIPDetector):
        def __init__(self, model: CLIPDetectorWithGradCAM) -> None:
            torch.nn.Module.__init__(self)
            self.backbone, self.head, self.loss_func = model.backbone, model.head, model.loss_func

    model = tiny_detector()
    data = {"image": images(5), "label": torch.tensor([0, 1, 1, 0, 1])}
    with torch.no_grad():
        ours, theirs = model(data, inference=True), Host(model).eval()(data, inference=True)
    assert set(ours) == {"cls", "prob", "feat"}
    for key in theirs:
        assert torch.equal(ours[key], theirs[key])
    loss = model.get_losses(data, ours)["overall"]
    expected = -torch.log_softmax(ours["cls"].double(), 1)[range(5), data["label"]].mean()
    torch.testing.assert_close(loss.double(), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_loss"])
def test_both_spellings_of_the_loss(name: str) -> None:
    assert isinstance(CLIPDetectorWithGradCAM(tiny_config(loss_func=name)).loss_func, torch.nn.CrossEntropyLoss)


def test_registered_and_a_subclass_of_the_host_detector() -> None:
    assert DETECTOR["clip_gradcam"] is CLIPDetectorWithGradCAM and issubclass(CLIPDetectorWithGradCAM, CLIPDetector)


@pytest.mark.parametrize("name", KNOWN_TOWERS)
def test_known_towers_are_the_published_architectures(name: str) -> None:
    """Number of patches and weights, against the published parameter counts of the vision towers (in millions)."""
    fields = KNOWN_TOWERS[name]
    published = {
        "large-patch14": 303.2, "large-patch14-336": 303.5, "base-patch16": 85.8, "base-patch32": 87.5,
        "L-14": 303.2, "B-16": 85.8, "B-32": 87.5, "H-14": 630.8, "g-14": 1011.2, "bigG-14": 1842.8,
    }  # fmt: skip  # open_clip's figures less the projection
    named = re.search(r"(?:clip-vit-|ViT-)((?:large|base)-.*|\w+-\d+)", name)
    assert named
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(**fields))
    count = sum(parameter.numel() for parameter in tower.parameters()) / 1e6
    assert count == pytest.approx(published[named[1]], abs=0.1)
    assert hidden_act(name) == ("quick_gelu" if name.startswith("openai") else "gelu")


def test_disabled_is_the_default_and_says_how_to_enable() -> None:
    model = CLIPDetectorWithGradCAM({key: value for key, value in tiny_config().items() if key != "gradcam_enabled"})
    with pytest.raises(InputError, match=r"enable_gradcam\(\)"):
        model.generate_gradcam({"image": images(1)})
    model.enable_gradcam()
    assert list(model.generate_gradcam({"image": images(1)})) == ["encoder.layers.3"]  # the last block
    model.disable_gradcam()
    for draw in (model.generate_gradcam, model.show_gradcam):
        with pytest.raises(InputError, match="disabled"):
            draw({"image": images(1)})


def test_the_switch_is_one_and_explain_does_not_depend_on_it() -> None:
    model, data = tiny_detector(), {"image": images(1)}
    on = model.explain(data)
    assert model.gradcam_enabled and model.gradcam.enabled
    model.disable_gradcam()
    assert not model.gradcam_enabled and not model.gradcam.enabled
    off = model.explain(data)
    assert torch.equal(on.layers["encoder.layers.3"].raw, off.layers["encoder.layers.3"].raw)


def test_options_by_keyword_and_in_the_documented_order(tmp_path: Path) -> None:
    model, data = tiny_detector(gradcam_save_dir=str(tmp_path)), {"image": images(2)}
    how: dict[str, Any] = {"layers": ["encoder.layers.1"], "method": "hirescam", "target": "real", "site": "residual"}
    wanted = model.explain(data, **how).layers["encoder.layers.1"]
    by_order = model.explain(data, *how.values()).layers["encoder.layers.1"]
    maps = [
        by_order.normalised,
        model.generate_gradcam(data, **how)["encoder.layers.1"],
        model.generate_gradcam(data, True, "mine", *how.values())["encoder.layers.1"],
    ]
    assert not wanted.empty.all() and all(torch.equal(one, wanted.normalised) for one in maps)
    assert (tmp_path / "mine_encoder.layers.1_sample1.png").is_file()
    panels = [model.show_gradcam(data, **how).axes, model.show_gradcam(data, *how.values()).axes]
    drawn = [np.asarray(axes[1].images[0].get_array()) for axes in panels]
    saved = read_image(tmp_path / "mine_encoder.layers.1_sample0.png")[..., ::-1]
    assert all(np.array_equal(one, saved) for one in drawn)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gradcam_method": "gradcamm"}, "did you mean 'gradcam'"),
        ({"gradcam_pp_epsilon": -1}, "gradcam_pp_epsilon is -1"),
        ({"backbone_config": 3}, "backbone_config is 3"),
        ({"backbone_config": {"pretrained": "no"}}, "pretrained is 'no'"),
        ({"backbone_config": {"architecture": ARCHITECTURE, "pretrained": True}}, "contradict"),
        ({"backbone_config": {"architecture": {**ARCHITECTURE, "hidden_size": 33}}}, "no CLIP backbone can be built"),
    ],
)
def test_unusable_config_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        CLIPDetectorWithGradCAM(tiny_config(**changes))
    assert says in str(caught.value)


def test_saved_images_show_the_image_and_its_map(tmp_path: Path) -> None:
    """Where the map is lowest the overlay is the image half blended with jet's lowest colour, where highest, its highest."""
    model = tiny_detector(gradcam_save_dir=str(tmp_path), gradcam_layers=["encoder.layers.1"])
    image = images(2).clamp(-1, 1)
    cams = model.generate_gradcam({"image": image}, save_visualizations=True, filename_prefix="look")[
        "encoder.layers.1"
    ]
    jet = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0]
    for i in range(2):
        drawn = read_image(tmp_path / f"look_encoder.layers.1_sample{i}.png").astype(float)
        original = ((image[i].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255).round()[..., ::-1]
        for level, place in ((0, int(cams[i].argmin())), (255, int(cams[i].argmax()))):
            row, column = divmod(place, PIXELS)
            np.testing.assert_allclose(drawn[row, column], (original[row, column] + jet[level]) / 2, atol=1.01)
        comparison = read_image(tmp_path / f"look_comparison_sample{i}.png")
        places = cv2.matchTemplate(comparison, drawn.astype(np.uint8), cv2.TM_SQDIFF)
        row, column = divmod(int(places.argmin()), places.shape[1])
        cut = comparison[row : row + PIXELS, column : column + PIXELS]
        np.testing.assert_array_equal(cut, drawn)  # the overlay stands in the comparison, pixel for pixel
