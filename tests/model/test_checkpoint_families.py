"""Checkpoints as public projects and tools write them, loaded into the CLIP detector: the logits are those projects'."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.datasets import DataTree, change_yaml
from tests.helpers.detectors import ARCHITECTURE, images, spread, tiny_detector
from tests.helpers.real_towers import library
from tests.helpers.weights import load_weights
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.base.files import sha256_of
from utils.gradcam_kit.model import checkpoint_families
from utils.gradcam_kit.model.checkpoint_families import register_checkpoint
from utils.gradcam_kit.model.checkpoints import read_weights, translate
from utils.gradcam_kit.model.clip_tower import KNOWN_TOWERS, fitted_config
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.load import load_detector
from utils.gradcam_kit.model.weights_file import WeightsFile, read_file
from utils.gradcam_kit.settings.config import detector_settings

WIDTH = ARCHITECTURE["hidden_size"]
Weights = dict[str, Tensor]


def tower_weights(seed: int = 0) -> Weights:
    """The vision tower's, without any prefix."""
    state = tiny_detector(seed).state_dict()
    return {key[len("backbone.") :]: value for key, value in state.items() if key.startswith("backbone.")}


def pooled(x: Tensor, seed: int = 0) -> Tensor:
    """What the tower of `tower_weights` gives a head."""
    with torch.no_grad():
        return tiny_detector(seed)({"image": x})["feat"]


def loaded(tree: DataTree, content: Any) -> LoadedDetector:
    """As the command loads such a file with a YAML of two logits."""
    path = tree.folder / "found.pth"
    torch.save(content, path)
    change_yaml(tree.detector_yaml, weights_path=str(path))
    return load_detector(detector_settings(tree.detector_yaml, {"gradcam_enabled": True}), torch.device("cpu"))


def logits(detector: LoadedDetector, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = detector.model({"image": x}, inference=True)["cls"]
    return found


# ------------------------------------------------------------------------------------------------------------ wrappers

FORMS: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "DDP around torch.compile": lambda key: f"module._orig_mod.{key}",
    "FSDP, blocks too": lambda key: (
        "_fsdp_wrapped_module." + key.replace("layers.2.", "layers.2._fsdp_wrapped_module.")
    ),
    "checkpointed blocks": lambda key: key.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "Lightning": lambda key: f"model.{key}",
    "Lightning around DDP": lambda key: f"model.module.{key}",
    "a compiled tower": lambda key: key.replace("backbone.", "backbone._orig_mod."),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_of_wrappers_are_taken_off(form: str, tmp_path: Path) -> None:
    source, model = tiny_detector(1), tiny_detector(2)
    torch.save(
        {"state_dict": {FORMS[form](key): value for key, value in source.state_dict().items()}}, tmp_path / "a.pth"
    )
    load_weights(model, tmp_path / "a.pth")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_averaged_weights_are_loaded_without_their_counter(tmp_path: Path) -> None:
    source, model = tiny_detector(1), tiny_detector(2)
    torch.save(AveragedModel(source).state_dict(), tmp_path / "swa.pth")
    assert load_weights(model, tmp_path / "swa.pth") == sha256_of(tmp_path / "swa.pth")
    assert torch.equal(model.head.weight, source.head.weight)


def test_a_models_own_names_are_left_alone(tmp_path: Path) -> None:
    """`module`, `classifier` and `fc` may be names of the model's own."""
    for names in ("module", "classifier", "fc", "base_model"):
        source, model = nn.ModuleDict({names: nn.Linear(2, 2)}), nn.ModuleDict({names: nn.Linear(2, 2)})
        for prefix in ("", "module."):
            torch.save({prefix + key: value for key, value in source.state_dict().items()}, tmp_path / "a.pth")
            load_weights(model, tmp_path / "a.pth")
            assert torch.equal(model[names].weight, source[names].weight)  # type: ignore[arg-type]  # a Linear


# ------------------------------------------------------------------------------------------------------- whole projects


def text_tower() -> Weights:
    return {
        "model.logit_scale": torch.tensor(2.6),
        "model.text_projection.weight": torch.randn(16, 24),
        "model.text_model.embeddings.position_ids": torch.arange(8)[None],
    }


def test_efforts_universal_fake_detect_layout(data_tree: DataTree) -> None:
    head, x = nn.Linear(WIDTH, 1), images(3)
    state = {f"model.vision_model.{key}": value for key, value in tower_weights().items()}
    state.update({"fc.weight": head.weight, "fc.bias": head.bias, **text_tower()})
    state["model.visual_projection.weight"] = torch.randn(16, WIDTH)
    detector = loaded(data_tree, {"model": state, "optimizer": {"state": {}}, "total_steps": 18000})
    expected = head(pooled(x)).detach()
    torch.testing.assert_close(logits(detector, x), expected)
    scores = detector.scores(x)
    torch.testing.assert_close(scores.prob_fake.detach(), expected.sigmoid()[:, 0])
    assert detector.explain(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), target="fake").target == ["fake", "fake"]


def test_a_head_that_reads_the_projection_is_merged_with_it(data_tree: DataTree) -> None:
    projection, head, x = nn.Linear(WIDTH, 16, bias=False), nn.Linear(16, 1), images(3)
    state = {f"model.vision_model.{key}": value for key, value in tower_weights().items()}
    state.update({"fc.weight": head.weight, "fc.bias": head.bias, "model.visual_projection.weight": projection.weight})
    detector = loaded(data_tree, {"model": state})
    torch.testing.assert_close(logits(detector, x), head(projection(pooled(x))).detach())


def test_openais_own_tower_gives_what_it_gives_there(data_tree: DataTree) -> None:
    open_clip = library("open_clip")
    QuickGELU, VisionTransformer = open_clip.transformer.QuickGELU, open_clip.transformer.VisionTransformer

    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=64, patch_size=16, width=WIDTH, layers=4, heads=4, mlp_ratio=2.0, output_dim=16, act_layer=QuickGELU
    )
    visual, head, x = spread(visual), nn.Linear(16, 1), images(3)
    state = {f"model.visual.{key}": value for key, value in visual.state_dict().items()}
    state.update({"model.token_embedding.weight": torch.zeros(5, 4), "model.logit_scale": torch.tensor(1.0)})
    state.update({"fc.weight": head.weight, "fc.bias": head.bias})
    detector = loaded(data_tree, {"model": state, "optimizer": {}, "total_steps": 1})
    assert open_clip.__version__
    with torch.no_grad():
        torch.testing.assert_close(logits(detector, x), head(visual(x)), rtol=1e-4, atol=1e-5)


def test_c2p_clip(data_tree: DataTree) -> None:
    projection, head, x = nn.Linear(WIDTH, 16, bias=False), nn.Linear(16, 1), images(3)
    state = {f"model.vision_model.{key}": value for key, value in tower_weights().items()}
    state.update({"model.visual_projection.weight": projection.weight})
    state.update({"model.fc.weight": head.weight, "model.fc.bias": head.bias})
    features = projection(pooled(x))
    expected = head(features / features.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(logits(loaded(data_tree, state), x), expected)


def test_gend(data_tree: DataTree) -> None:
    head, x = nn.Linear(WIDTH, 2), images(3)
    state = {f"feature_extractor.vision_model.{key}": value for key, value in tower_weights().items()}
    state.update({"feature_extractor.visual_projection.weight": torch.randn(16, WIDTH)})
    state.update({"model.linear.weight": head.weight, "model.linear.bias": head.bias})
    detector = loaded(data_tree, state)
    torch.testing.assert_close(logits(detector, x), head(F.normalize(pooled(x), dim=1)).detach())
    maps = detector.model.explain({"image": x}, target="margin").layers["encoder.layers.3"]
    assert maps.signed.abs().amax() > 0


def test_a_head_alone_is_named(data_tree: DataTree) -> None:
    with pytest.raises(InputError, match=r"only a linear head \(logits 1, features 768\).*UniversalFakeDetect"):
        loaded(data_tree, {"weight": torch.zeros(1, 768), "bias": torch.zeros(1)})


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_as_peft_writes_it(data_tree: DataTree, rank_stabilised: bool) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=rank_stabilised, modules_to_save=["head"]
    )
    adapted, x = spread(peft.get_peft_model(tiny_detector(1), config)), images(3)
    config.save_pretrained(str(data_tree.folder))
    with torch.no_grad():
        expected = adapted.base_model.model({"image": x})["cls"]
    assert not torch.allclose(expected, tiny_detector(1)({"image": x})["cls"].detach(), atol=1e-2)
    detector = loaded(data_tree, adapted.state_dict())
    torch.testing.assert_close(logits(detector, x), expected, rtol=1e-4, atol=1e-5)
    (data_tree.folder / "adapter_config.json").unlink()
    with pytest.raises(
        InputError, match=r"weights without lora_alpha: put PEFT's adapter_config\.json next to the file"
    ):
        loaded(data_tree, adapted.state_dict())
    with pytest.raises(InputError, match=r"only a PEFT \(LoRA\) adapter"):
        loaded(data_tree, {key: value for key, value in adapted.state_dict().items() if ".lora_" in key})


# ------------------------------------------------------------------------------------------- what the YAML cannot know


def published(name: str, **more: Tensor) -> Weights:
    fields = KNOWN_TOWERS[name]
    width, patch, side = fields["hidden_size"], fields["patch_size"], fields["image_size"] // fields["patch_size"]
    found = {
        "backbone.embeddings.class_embedding": torch.zeros(width),
        "backbone.embeddings.patch_embedding.weight": torch.zeros(width, 3, patch, patch, device="meta"),
        "backbone.embeddings.position_embedding.weight": torch.zeros(side**2 + 1, width, device="meta"),
        "head.weight": torch.zeros(2, width),
    }
    found.update({f"backbone.encoder.layers.{i}.w": torch.zeros(1) for i in range(fields["num_hidden_layers"])})
    return {**found, **more}


@pytest.mark.parametrize(
    ("yaml", "file", "built", "said"),
    [
        ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16", True),
        ("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "openai/clip-vit-base-patch16",
         "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", True),
        ("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "openai/clip-vit-base-patch16",
         "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", False),
        ("/a/folder", "openai/clip-vit-base-patch16", "/a/folder", False),
        (None, "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", False),
    ],
)  # fmt: skip
def test_the_tower_is_as_large_as_the_checkpoints(
    yaml: str | None, file: str, built: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {} if yaml is None else {"name_or_path": yaml}
    config = fitted_config({"backbone_config": network}, published(file))
    assert config["backbone_config"].get("name_or_path") == built
    assert (f"has the size of {built}" in capsys.readouterr().err) == said


def test_efforts_rank_is_the_files() -> None:
    residual = {"backbone.encoder.layers.0.self_attn.q_proj.S_residual": torch.zeros(256)}
    config = fitted_config({}, published("openai/clip-vit-large-patch14", **residual))
    assert config["backbone_config"]["residual_rank"] == 256


# ------------------------------------------------------------------------------------------------------ what is refused


def test_settings_of_a_training_script_beside_the_weights(tmp_path: Path) -> None:
    source, model = tiny_detector(1), tiny_detector(2)
    extra = {"args": argparse.Namespace(lr=1e-4, name="run"), "best_auc": np.float64(0.91), "step": np.int64(3)}
    torch.save({"model": source.state_dict(), "scaler": {}, **extra}, tmp_path / "a.pth")
    load_weights(model, tmp_path / "a.pth")
    assert torch.equal(model.head.weight, source.head.weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.index_fill(0, torch.tensor(0), float("nan")), r"head.weight holds NaN or infinity \(32 of 64"),
        (lambda w: w.index_fill(1, torch.tensor(0), float("inf")), r"head.weight holds NaN or infinity \(2 of 64"),
        (lambda w: w.to(torch.complex64), "head.weight is complex64, the detector's is float32"),
        (lambda w: w.bool(), "head.weight is bool, the detector's is float32"),
        (lambda w: w.to(torch.int8), "head.weight is int8, the detector's is float32"),
        (lambda w: w.to(torch.float8_e4m3fn), "head.weight is float8_e4m3fn, the detector's is float32"),
        (lambda w: w.to(torch.float8_e5m2), "head.weight is float8_e5m2, the detector's is float32"),
        (lambda w: w.to(torch.int64), "head.weight is int64, the detector's is float32"),
        (lambda w: w.to_sparse(), "'head.weight' has the layout sparse_coo"),
        (lambda w: w.to("meta"), "'head.weight' has no data"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_are_no_weights(change: Callable[[Tensor], Tensor], says: str, tmp_path: Path) -> None:
    model = tiny_detector()
    before = model.head.weight.clone()
    weights = {**model.state_dict(), "head.weight": change(model.head.weight.detach())}
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=says) as refused:
        load_weights(model, tmp_path / "a.pth")
    assert "\n" not in str(refused.value) and torch.equal(model.head.weight, before)


def test_8_bit_floats_are_refused_unless_the_model_has_them(tmp_path: Path) -> None:
    kinds = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]
    model = nn.Linear(2, 2, bias=False)
    for kind in kinds:
        weight = torch.ones(2, 2).to(kind)
        torch.save({"weight": weight}, tmp_path / "a.pth")
        says = f"weight is {str(kind)[6:]}, the detector's is float32.*save the weights as float32"
        with pytest.raises(InputError, match=says):
            load_weights(model, tmp_path / "a.pth")
        same = nn.Module()
        same.register_buffer("weight", torch.zeros(2, 2).to(kind))
        load_weights(same, tmp_path / "a.pth")
        assert torch.equal(same.get_buffer("weight").float(), torch.ones(2, 2))
    assert len(kinds) >= 2


HEAD = {"fc.weight": torch.zeros(1, 4)}
CLASS = "vision_model.embeddings.class_embedding"


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({**HEAD, "visual.conv1.weight": torch.zeros(3)}, "not a complete checkpoint of UniversalFakeDetect"),
        ({**HEAD, CLASS: torch.zeros(())}, "not a complete checkpoint of UniversalFakeDetect"),
        (
            {**HEAD, CLASS: torch.zeros(8), "model.visual_projection.weight": torch.zeros(())},
            "not a complete checkpoint of UniversalFakeDetect",
        ),
        (
            {"a.weight": torch.zeros(2, 2), "a.lora_A.weight": torch.zeros(()), "a.lora_B.weight": torch.zeros(2, 2)},
            "weights of a do not fit it",
        ),
        (
            {"a.weight": torch.zeros(2, 2), "a.lora_A.weight": torch.zeros(0, 2), "a.lora_B.weight": torch.zeros(2, 0)},
            "weights of a do not fit it",
        ),
    ],
)
def test_tensors_that_no_such_project_writes(weights: Weights, says: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1}')
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=says):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "9" * 400, "true", '"8"'])
def test_a_lora_alpha_that_is_no_usable_number(alpha: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    weight = torch.zeros(2, 2)
    torch.save({"a.weight": weight, "a.lora_A.weight": weight, "a.lora_B.weight": weight}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="lora_alpha is .*; allowed: a number"):
        read_weights(tmp_path / "a.pth")


def only(name: str, weights: Mapping[str, Tensor]) -> Weights:
    return {name: weights["fc.weight"]}


def test_a_registered_family_comes_first_and_replaces_its_namesake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_families, "FAMILIES", [*checkpoint_families.FAMILIES])
    file = WeightsFile(Path("a.pth"), {"module.fc.weight": torch.ones(1)}, "")
    assert list(translate(file)) == ["fc.weight"]
    for new in ("once", "twice"):
        register_checkpoint("mine", {"fc.weight"}.issubset, partial(only, new))
        assert list(translate(file)) == [new]
    assert [family.name for family in checkpoint_families.FAMILIES].count("mine") == 1


def test_large_weights_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    model = tiny_detector()
    weights = {**model.state_dict(), "head.weight": torch.full_like(model.head.weight, 3e38)}
    torch.save(weights, tmp_path / "a.pth")
    load_weights(model, tmp_path / "a.pth")
    assert float(model.head.weight.detach().max()) == pytest.approx(3e38)


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(3_000_000)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in stored.infolist():
            bomb.writestr(entry.filename, stored.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 50_000
    monkeypatch.setattr(torch, "load", None)  # not even called
    with pytest.raises(InputError, match=r"bytes that unpack to 12,0[\d,]+, which torch.save never writes"):
        read_file(tmp_path / "bomb.pth")


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = tmp_path / "a.pth", torch.load
    torch.save({"a": torch.zeros(3)}, path)

    def saved_over(*arguments: Any, **options: Any) -> Any:
        found = load(*arguments, **options)
        torch.save({"a": torch.ones(4)}, path)
        return found

    monkeypatch.setattr(torch, "load", saved_over)
    with pytest.raises(InputError, match="changed while it was read"):
        read_file(path)
