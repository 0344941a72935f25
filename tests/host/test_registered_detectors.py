"""Detectors as hosts write them, small: explained without code of their own, or refused in one line that names them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from detectors import Registry
from detectors.gradcam_registered import register_all, with_gradcam
from tests.helpers.detectors import ARCHITECTURE, tiny_detector
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.frame import Frame
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.model.clip_tower import KNOWN_TOWERS
from utils.gradcam_kit.model.detector import LoadedDetector
from utils.gradcam_kit.model.host import inputs as host_inputs
from utils.gradcam_kit.model.host.inputs import HostInputs, high_frequencies
from utils.gradcam_kit.settings.config import DetectorSettings
from utils.gradcam_kit.settings.config_values import gradcam_settings

NO_WEIGHTS = {"backbone_config": {"pretrained": False}, "resolution": 32}


class Net(nn.Module):
    """Two convolutions and one ReLU for everything, as in Xception."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 8, 3, stride=2)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.conv1(x)))

    def classifier(self, features: Tensor) -> Tensor:
        return self.fc(self.relu(features).mean(dim=(2, 3)))


class Host(nn.Module):
    """A detector of a host: whatever is particular is said by the subclass."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = self.build_backbone(config)

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        return Net()

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        return self.backbone.classifier(self.backbone.features(data_dict["image"]))  # type: ignore[operator]

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        logits = self.logits(data_dict, inference)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "vec": None}


def built(host: type, **config: Any) -> Any:
    torch.manual_seed(1)
    return with_gradcam("small", host)({**NO_WEIGHTS, **config}).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def loaded(host: type, **config: Any) -> LoadedDetector:
    config = {**NO_WEIGHTS, **config}
    settings = DetectorSettings(config, "small", None, 32, gradcam_settings({"gradcam_enabled": True}))
    return LoadedDetector(model=built(host, **config), device=torch.device("cpu"), precision="fp32", settings=settings)


# -------------------------------------------------------------------------------------------------------- which layer


def test_a_shared_relu_is_explained_where_it_runs_last() -> None:
    """Against a backward pass by hand in float64; the ReLU's first run has other maps of another size."""
    model = built(Host).double()
    maps = model.explain({"image": images().double()}, target="fake").layers
    net, x = model.backbone, images().double()
    A = torch.relu(net.conv2(torch.relu(net.conv1(x)))).detach().requires_grad_()
    net.fc(A.mean(dim=(2, 3)))[:, 1].sum().backward()
    assert A.grad is not None
    expected = (A.grad.mean(dim=(2, 3), keepdim=True) * A).sum(dim=1).detach()
    assert list(maps) == ["backbone.relu"]
    torch.testing.assert_close(maps["backbone.relu"].signed, expected, rtol=0, atol=1e-12)
    single = model.explain({"image": images()[1:2].double()}, target="fake").layers["backbone.relu"].signed
    torch.testing.assert_close(single, expected[1:2], rtol=0, atol=1e-12)


def test_names_with_and_without_backbone_mean_the_same() -> None:
    model = built(Host)
    maps = model.explain({"image": images()}, layers=["conv2", "backbone.conv2", "module.backbone.conv2"]).layers
    assert list(maps) == ["conv2", "backbone.conv2", "module.backbone.conv2"]
    assert len({maps[name].raw.numpy().tobytes() for name in maps}) == 1


class PredictsAMask(Host):
    """As Face X-ray: the last activation is a mask of one channel, and a side branch runs after everything."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.mask, self.side, self.head = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 16, 1), nn.Linear(49, 2)

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        features = self.backbone.features(data_dict["image"])  # type: ignore[operator]
        logits = self.head(self.mask(features).flatten(1))
        self.side(features)
        return logits


def test_masks_and_side_branches_are_not_the_default() -> None:
    layer = built(PredictsAMask).as_subject().default_spatial()
    assert layer == ("backbone.conv2", 12, 7, 7)


class TwoViews(Host):
    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        x = data_dict["image"]
        return super().logits({"image": x}, inference) + super().logits({"image": x.flip(3)}, inference)


class Frozen(Host):
    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        with torch.no_grad():
            return super().logits(data_dict, inference)


class NoGrid(Host):
    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, (3, 3), padding=1), nn.Flatten())

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        return self.backbone(data_dict["image"])


@pytest.mark.parametrize(
    ("host", "layers", "says"),
    [
        (TwoViews, None, "'backbone.relu' runs more than once in one forward pass"),
        (TwoViews, ["backbone.conv2"], "'backbone.conv2' runs more than once in one forward pass"),
        (Frozen, None, r"'small': its network runs under torch\.no_grad\(\)"),
        (Frozen, ["backbone.conv2"], r"'backbone.conv2' runs under torch\.no_grad\(\)"),
        (NoGrid, None, "'small': none of its modules returns maps"),
    ],
)
def test_what_cannot_be_explained_is_one_line(host: type, layers: list[str] | None, says: str) -> None:
    model = built(host)
    with pytest.raises(InputError, match=says):
        model.explain({"image": images()}, layers=layers, target="fake")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_runs_twice_is_refused_by_rollout_too() -> None:
    model = tiny_detector()
    tower, image = model.backbone, torch.randn(1, 3, 64, 64)

    def twice(data_dict: Any) -> dict[str, Tensor]:
        return {"cls": model.head(tower(image).pooler_output + tower(-image).pooler_output)}

    model.forward = twice  # type: ignore[assignment,method-assign]  # two views of one image
    for method in ("gradcam", "legrad", "rollout"):
        with pytest.raises(LayerError, match="runs more than once"):
            model.explain({"image": image}, method=method, target="fake")


# ------------------------------------------------------------------------------------------------------- what it reads


class Reads(Host):
    """Keeps what it reads, as hosts keep statistics in inference, and returns no "prob"."""

    key = "label"

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.seen: list[Any] = []

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        self.seen.append(data_dict[self.key])
        self.last = data_dict[self.key]
        return {"cls": self.logits(data_dict, inference)}


def frames(folder: Path) -> list[Frame]:
    """A real and a fake frame, the fake one with a mask whose right half is forged."""
    found = []
    for index, forgery in enumerate(("FF-real", "FF-NT")):
        (folder / forgery / "masks").mkdir(parents=True)
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 255 * index
        cv2.imwrite(str(folder / forgery / "masks" / "0.png"), mask)
        path = str(folder / forgery / "frames" / "0.png")
        found.append(Frame(path, "FF", forgery, "v", index, index))
    return found


def test_what_a_detector_reads_is_passed_where_the_data_has_it(tmp_path: Path) -> None:
    pixels, given = torch.full((2, 3, 32, 32), 9, dtype=torch.uint8), frames(tmp_path)
    seen = {}
    for key in ("label", "label_spe", "mask", "landmark"):
        detector = loaded(type("ReadsKey", (Reads,), {"key": key}), label_dict={"FF-real": 0, "FF-NT": 3})
        logits, prob = detector.predict(pixels, given)
        assert torch.equal(prob, logits.softmax(dim=1)[:, 1])
        seen[key] = detector.model.last
        assert detector.model.seen == []  # nothing piles up over a test set
        detector.begin_explaining(pixels, target="fake", frames=given)
    assert seen["label"].tolist() == [0, 1] and seen["label"].dtype == torch.int64
    assert seen["label_spe"].tolist() == [0, 3]
    assert seen["mask"].shape == (2, 1, 32, 32) and seen["mask"].sum(dim=(1, 2, 3)).tolist() == [0, 32 * 16]
    assert seen["mask"][1, 0, :, 16:].min() == 1 and seen["landmark"] is None


def test_what_no_data_set_has_is_named() -> None:
    detector = loaded(type("ReadsKey", (Reads,), {"key": "audio"}))
    with pytest.raises(InputError, match=r"detector 'small' reads data_dict\['audio'\], which a test set lacks"):
        detector.check_predictions()
    host_inputs.host_makes.cache_clear()
    with pytest.raises(InputError, match=r"data_dict\['idct'\]"):  # only where the host's own data set makes it
        loaded(type("ReadsKey", (Reads,), {"key": "idct"})).check_predictions()


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_high_frequencies_are_opencvs(size: tuple[int, int]) -> None:
    height, width = size
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    spectrum = cv2.dct(np.float32(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))
    for row in range(height):
        for column in range(width):
            if width / height * row + column < 0.33 * width:
                spectrum[row, column] = 0
    expected = (cv2.idct(spectrum) / 255 - 0.5) / 0.5
    got = high_frequencies(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0))
    assert got.shape == (1, 1, *size) and got.dtype == torch.float32
    np.testing.assert_allclose(got[0, 0].numpy(), expected, rtol=0, atol=0.02)  # grey values are rounded: half a step
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    channels = [torch.tensor(one).view(3, 1, 1) for one in (mean, std)]
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    normalised = ((pixels / 255 - channels[0]) / channels[1]).unsqueeze(0)
    inputs = HostInputs({"image": normalised}, "lrl", mean, std)
    torch.testing.assert_close(inputs._idct(), got, rtol=0, atol=1e-5)


def test_in_training_the_host_gets_what_it_was_given() -> None:
    given: list[Any] = []

    class Notes(Host):
        def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Any]:
            given.append(data_dict)
            return super().forward(data_dict, inference)

    data = {"image": images()}
    built(Notes).train()(data)
    assert given[0] is data


# --------------------------------------------------------------------------------------------------------- constructors


class LoadsAndCopies(Host):
    """As SPSL and F3Net: reads a file, filters its keys and makes a first convolution of its own from one weight."""

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        net = Net()
        net.fc = nn.Sequential(nn.Dropout(), nn.Linear(12, 2))  # type: ignore[assignment]
        weights = torch.load("./training/pretrained/nobody-has-this.pth")
        weights = {key: value for key, value in weights.items() if "fc" not in key}
        first = weights.pop("conv1.weight")
        net.load_state_dict(weights, False)
        net.conv1 = nn.Conv2d(4, 8, 3, stride=2)
        net.conv1.weight.data = first.mean(dim=1, keepdim=True).repeat(1, 4, 1, 1)
        return net

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        x = data_dict["image"]
        return super().logits({"image": torch.cat([x, x[:, :1]], dim=1)}, inference)


class LoadsStrictly(Host):
    """As UIA-ViT from a URL, and as IID strictly from a file; then to the GPU, whether there is one or not."""

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        net = Net()
        weights = torch.hub.load_state_dict_from_url("https://invalid.invalid/weights-0123abcd.pth")
        del weights["fc.weight"], weights["fc.bias"]
        report = net.load_state_dict(weights, strict=False)
        assert sorted(report.missing_keys) == ["fc.bias", "fc.weight"]
        self.other = Net()
        self.other.load_state_dict(torch.load("other.pth")["state_dict"])
        return net if torch.cuda.is_available() else net.cuda()


class LoadsSeveral(Host):
    """As LSDA: networks of one kind, wrapped one by one, some of them in a larger one that is no part of anything yet."""

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        def loaded_net() -> nn.Module:
            net = Net()
            assert not net.load_state_dict(torch.load("other.pth")).missing_keys
            return nn.ModuleList([net, nn.Linear(2, 2)])

        whole = nn.Module()
        whole.teachers = nn.ModuleList([loaded_net() for _ in range(3)])
        whole.student = loaded_net()
        self.whole = whole
        return Net()


class LoadsCLIP(Host):
    """From the folder of a hub's cache that only its author has."""

    def build_backbone(self, config: dict[str, Any]) -> nn.Module:
        path = "../hub/models--openai--clip-vit-base-patch32/snapshots/0123/"
        self.published = transformers.CLIPVisionModel.from_pretrained(path).config
        return Net()


@pytest.mark.parametrize("host", [LoadsAndCopies, LoadsStrictly, LoadsSeveral, LoadsCLIP])
def test_no_constructor_loads_or_downloads_anything(host: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"the network was used: {arguments}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setitem(KNOWN_TOWERS, "openai/clip-vit-base-patch32", dict(ARCHITECTURE))  # small, to be quick
    owners: list[tuple[Any, str]] = [(torch, "load"), (nn.Module, "__init__"), (nn.Module, "load_state_dict"),
              (torch.hub, "download_url_to_file"), (transformers.PreTrainedModel, "from_pretrained"),
              (nn.Module, "cuda")]  # fmt: skip
    before = [vars(owner)[name] for owner, name in owners]
    model = built(host)
    assert [vars(owner)[name] for owner, name in owners] == before and "cuda" not in vars(Tensor)
    assert not model.explain({"image": images()}, target="margin").layers["backbone.relu"].empty.all()
    if host is LoadsCLIP:
        assert model.published.hidden_size == ARCHITECTURE["hidden_size"]


def _keeps(config: dict[str, Any]) -> Any:
    return torch.load("./training/pretrained/templates.pth")


def _downloads(config: dict[str, Any]) -> Any:
    raise urllib.error.URLError("no network")


@pytest.mark.parametrize(
    ("build", "says"),
    [(_keeps, r"'small' cannot be built here.*templates\.pth"), (_downloads, "'small' cannot be built here: URLError")],
)
def test_a_constructor_that_cannot_do_without_is_one_line(build: Callable[..., Any], says: str) -> None:
    host = type("Wants", (Host,), {"build_backbone": lambda self, config: build(config)})
    with pytest.raises(InputError, match=says):
        built(host)


# ----------------------------------------------------------------------------------------------------- what is refused


class Random(Host):
    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        return nn.functional.dropout(super().logits(data_dict, inference), 0.5, training=True)


class KnowsTheAnswer(Host):
    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        return super().logits(data_dict, inference) + data_dict["label"].view(-1, 1)


class WantsClips(Host):
    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        _, _, _, _, _ = data_dict["image"].shape
        return super().logits({"image": data_dict["image"].flatten(0, 1)}, inference)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (Random, "'small' is random in evaluation mode"),
        (KnowsTheAnswer, r"'small' gives different logits if data_dict\['label'\] changes"),
        (WantsClips, r"'small' does not run on images of shape \(2, 3, 32, 32\): ValueError"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(host: type, says: str) -> None:
    with pytest.raises(InputError, match=says):
        loaded(host).check_predictions()
    loaded(Host).check_predictions()


class LosesABatchOfOne(Host):
    """As RECCE in DF40."""

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        A = torch.relu(self.backbone.features(data_dict["image"]))  # type: ignore[operator]
        return self.backbone.fc(nn.functional.adaptive_avg_pool2d(A, 1).squeeze())  # type: ignore[operator]


def test_a_single_image_stays_a_batch() -> None:
    detector = loaded(LosesABatchOfOne)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    before = torch.Tensor.squeeze
    detector.check_predictions()
    detector.dry_run()
    assert torch.Tensor.squeeze is before and not loaded(Host).model.loses_batch_of_one
    three, one = detector.predict(pixels)[0], detector.predict(pixels[2:])[0]
    torch.testing.assert_close(one, three[2:], rtol=0, atol=1e-6)
    maps = [detector.explain(part, target="fake").layers["backbone.conv2"].raw for part in (pixels, pixels[2:])]
    torch.testing.assert_close(maps[1], maps[0][2:], rtol=1e-4, atol=1e-6)


class ReadsClips(Host):
    """Frames in the batch, and the mean of their logits."""

    def logits(self, data_dict: dict[str, Any], inference: bool) -> Tensor:
        frames = super().logits({"image": data_dict["image"].flatten(0, 1)}, inference)
        return frames.unflatten(0, data_dict["image"].shape[:2]).mean(1)


def test_a_detector_of_clips_is_evaluated_and_explained() -> None:
    detector = loaded(ReadsClips, video_mode=True, clip_size=5)
    detector.check_predictions()
    detector.dry_run()
    pixels = torch.randint(0, 256, (2, 5, 3, 32, 32), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    found = detector.explain(pixels, target="fake")
    torch.testing.assert_close(found.real_and_fake, detector.predict(pixels)[0], rtol=0, atol=0)
    assert found.maps.signed.shape[:2] == (2, 5) and found.heatmap.shape == (2, 5, 32, 32)
    with pytest.raises(InputError, match="reads images, not clips"):
        built(Host).explain(torch.zeros(1, 5, 3, 32, 32))
    with pytest.raises(InputError, match="video_mode is true, but the key clip_size is missing: give --clip_size"):
        loaded(ReadsClips, video_mode=True)


def test_every_network_in_a_registry_gets_heatmaps_once() -> None:
    registry = Registry()
    registry.data.update({"small": Host, "own": Host, "own_gradcam": Frozen, "no_network": dict})
    register_all(registry)
    register_all(registry)
    assert list(registry.data) == ["small", "own", "own_gradcam", "no_network", "small_gradcam"]
    assert issubclass(registry["small_gradcam"], Host) and registry["own_gradcam"] is Frozen
