"""What a researcher types in Python: from weights to a detector, a printed explanation, files, and wrong arguments."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.datasets import DataTree
from tests.helpers.detectors import BLOCKS, PIXELS, images, tiny_config, tiny_detector
from utils.gradcam import explain
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.explaining.any_model import AnyModelWithGradCAM
from utils.gradcam_kit.explaining.explanation import UNTRAINED
from utils.gradcam_kit.model.load import load_gradcam_detector, read_images

LAST = f"encoder.layers.{BLOCKS - 1}"


def test_one_line_from_weights_to_maps(data_tree: DataTree, tmp_path: Path) -> None:
    """The maps are those of the detector that the weights were saved from, on the pixels that OpenCV resizes by hand."""
    image = np.random.default_rng(0).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "face.png"), image[..., ::-1])
    model = load_gradcam_detector(data_tree.detector_yaml, device="cpu", gradcam_method="hirescam")
    explanation = model.explain(read_images(model, tmp_path / "face.png"), layers=-1, target="fake")
    small = cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_CUBIC)
    by_hand = (torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    expected = tiny_detector().explain(by_hand, layers=LAST, method="hirescam", target="fake")
    torch.testing.assert_close(explanation.logits, expected.logits)
    torch.testing.assert_close(explanation.layers["-1"].raw, expected.layers[LAST].raw)
    assert explanation.method == "hirescam" and not model.training


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda tree: load_gradcam_detector("gone.yaml"), "detector_path: no detector YAML at 'gone.yaml'"),
        (lambda tree: load_gradcam_detector(tree.detector_yaml, "gone.pth"), "no weights file at 'gone.pth'"),
        (lambda tree: load_gradcam_detector(tree.detector_yaml, device="gpu"), "device is 'gpu'; allowed: auto, cpu"),
        (lambda tree: load_gradcam_detector(tree.detector_yaml, gradcam_metod="x"), "did you mean 'gradcam_method'"),
        (lambda tree: read_images(tiny_detector(), "gone.png"), "gone.png: no such file"),
        (lambda tree: read_images(tiny_detector(), []), "files is empty"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(call: Any, says: str, data_tree: DataTree) -> None:
    with pytest.raises(InputError) as refused:
        call(data_tree)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (np.zeros((1, 3, PIXELS, PIXELS)), {}, "data_dict is ndarray: give a tensor"),
        ({"image": np.zeros((1, 3, PIXELS, PIXELS))}, {}, "is ndarray: expected a tensor of shape"),
        (
            torch.rand(1, 3, PIXELS, PIXELS) * 255,
            {},
            "which are pixel values from 0 to 255: give (x / 255 - mean) / std",
        ),
        (torch.zeros(1, 3, PIXELS, PIXELS), {"method": ["gradcam", "hirescam"]}, "one recipe has one method"),
        ({"picture": 1}, {}, "data_dict['image'] is missing"),
    ],
)
def test_a_wrong_argument_is_a_sentence(data: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        tiny_detector().explain(data, **options)
    assert says in str(refused.value)


def new_detector() -> CLIPDetectorWithGradCAM:
    return CLIPDetectorWithGradCAM(tiny_config()).eval()


def test_a_detector_that_never_got_weights_warns_once_and_marks_what_it_draws(tmp_path: Path) -> None:
    model = new_detector()
    with pytest.warns(UserWarning, match="random weights: this detector was never trained"):
        explanation = model.explain(images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model.explain(images(1))
    assert explanation.untrained and again.untrained and UNTRAINED in repr(again)
    (title,) = [text.get_text() for text in again.show().texts]
    assert title == UNTRAINED
    marked = cv2.imread(str(again.save(tmp_path)[-1]))
    assert marked is not None and (marked == (32, 0, 176)).all(axis=2).any()  # the red line, blue first


def loaded(model: Any) -> None:
    model.load_state_dict(new_detector().state_dict())


def trained(model: Any) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model({"image": images(2)})["cls"].sum().backward()
    optimiser.step()


@pytest.mark.parametrize("change", [loaded, trained])
def test_loaded_or_trained_weights_raise_no_warning(change: Any) -> None:
    model = new_detector()
    change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.explain(images(1)).untrained


def test_of_a_model_of_ones_own_nobody_knows_whether_it_was_trained() -> None:
    model = AnyModelWithGradCAM(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), Pooled()), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.explain(images(1)).untrained


class Pooled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3)))


def test_a_printed_explanation_is_short_and_says_what_was_found() -> None:
    explanation = tiny_detector().explain(images(20), layers=[-1, 0], target="fake")
    lines = repr(explanation).splitlines()
    assert len(lines) == 1 + 8 + 1 + 2 and str(explanation) == repr(explanation)
    assert lines[0] == f"Explanation of 20 images of {PIXELS} x {PIXELS}: gradcam at layer_norm1, backward plain"
    assert lines[1] == f"  image 0: P(fake) {float(explanation.prob_fake[0]):.3f}, heatmap for class: fake"
    peaks = explanation.layers["-1"].raw.flatten(1).amax(dim=1)
    assert f"raw maximum {float(peaks.min()):.3g} to {float(peaks.max()):.3g}" in lines[10]


@pytest.mark.parametrize("place", ["new/folder/m.npz", "~/m.npz", "$WHERE/deep/m.npz"])
def test_a_folder_is_created_for_what_is_saved(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    monkeypatch.chdir(tmp_path)
    explanation = tiny_detector().explain(images(1), layers=[LAST])
    wanted = Path(place.replace("~", str(tmp_path / "home")).replace("$WHERE", str(tmp_path / "where")))
    assert explanation.to_npz(place) == wanted and wanted.is_file()
    assert all(path.is_file() for path in explanation.save(Path(place).parent))
    (tmp_path / "taken").write_text("a file")
    for call in (lambda: explanation.save("taken"), lambda: explanation.to_npz("taken/m.npz")):
        with pytest.raises(InputError, match="taken: this folder cannot be created"):
            call()


def test_what_is_saved_is_what_was_computed(tmp_path: Path) -> None:
    given = images(2)
    explanation = tiny_detector().explain(given, layers=[LAST], target="fake")
    with np.load(explanation.to_npz(tmp_path / "maps.npz")) as saved:
        np.testing.assert_array_equal(saved[f"{LAST}/raw"], explanation.layers[LAST].raw.numpy())
        np.testing.assert_array_equal(saved["logits"], explanation.logits.numpy())
        assert saved["layers"].tolist() == [LAST] and saved["target"].tolist() == ["fake", "fake"]
    with pytest.raises(InputError, match=r"give a name that ends in \.npz"):
        explanation.to_npz(tmp_path / "maps.json")

    # The overlay by hand: OpenCV's jet, half and half with the pixels that (x 0.5 + 0.5) 255 gives.
    heat = (explanation.layers[LAST].normalised * 255).round().byte().numpy()
    pixels = ((given * 0.5 + 0.5) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    overlay = explanation.overlay()[LAST].numpy()
    for one, mapped, plain in zip(overlay, heat, pixels, strict=True):
        jet = cv2.applyColorMap(mapped, cv2.COLORMAP_JET)[..., ::-1]
        assert np.abs(one - (jet * 0.5 + plain * 0.5)).max() <= 1
    names = [path.name for path in explanation.save(tmp_path / "out", "mine")]
    assert f"mine_{LAST}_sample1.png" in names and "mine_comparison_sample0.png" in names
    written = cv2.imread(str(tmp_path / "out" / f"mine_{LAST}_sample1.png"))
    assert written is not None
    np.testing.assert_array_equal(written[..., ::-1], overlay[1])
    assert len(explanation.show().axes) == 4  # two rows of the original and a layer


def test_any_model_is_drawn_over_its_own_range() -> None:
    """Nobody has told mean and deviation: the darkest value is black, the brightest white."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), Pooled())
    pixels = explain(model, images(2) * 3 + 1, target="fake").pixels()
    assert pixels.dtype == torch.uint8 and pixels.flatten(1).amin(dim=1).tolist() == [0, 0]
    assert pixels.flatten(1).amax(dim=1).tolist() == [255, 255]
