"""What the live app answers, against the detector asked by hand; the page itself in `test_page.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.datasets import DataTree
from tests.helpers.detectors import PIXELS
from tests.helpers.paths import ROOT
from utils.gradcam_kit.app.live_detector import AS_CONFIGURED, LiveDetector, LiveMap, region_of
from utils.gradcam_kit.base.errors import InputError
from utils.gradcam_kit.data.images import UnreadableImage
from utils.gradcam_kit.media.faces import TEMPLATE, Face, Photographs, View
from utils.gradcam_kit.model.load import find_device, load_detector
from utils.gradcam_kit.settings.config import detector_settings


@pytest.fixture
def live(data_tree: DataTree) -> LiveDetector:
    settings = detector_settings(data_tree.detector_yaml, {"gradcam_enabled": True})
    return LiveDetector(load_detector(settings, find_device("cpu")), Photographs(PIXELS))


def photo(height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def probability(live: LiveDetector, image: np.ndarray) -> float:
    with torch.no_grad():
        given = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        return float(live.detector.model({"image": given})["prob"][0])


def test_an_image_is_explained_as_the_detector_does(live: LiveDetector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "face.png"), photo()[..., ::-1])
    opened = live.open(tmp_path / "face.png")
    (view,) = opened.views
    assert (opened.frames, opened.remark, view.matrix) == (1, "", None)
    shown = live.explain(view, "encoder.layers.2", "hirescam", "fake")
    assert shown.prob_fake == pytest.approx(probability(live, view.image), abs=1e-5)
    given = live.detector.normalise(torch.from_numpy(view.image).permute(2, 0, 1)[None])
    maps = live.detector.model.explain(given, layers="encoder.layers.2", method="hirescam", target="fake")
    np.testing.assert_allclose(shown.heat, maps.layers["encoder.layers.2"].normalised[0], atol=1e-6)
    assert shown.report["method"] == "hirescam" and shown.word in ("weak", "contradicted", "artefact", "empty")
    assert len(shown.report["weights_sha256"]) == 64
    assert live.explain(view, AS_CONFIGURED, AS_CONFIGURED, "margin").report["target"] == "margin"
    assert AS_CONFIGURED in live.layers() and "sum" in live.layers() and "rollout" in live.methods()


def test_the_map_is_as_opaque_as_it_is_hot_and_grey_where_denied() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = np.array([[0.0, 0.5], [1.0, 1.0]], np.float32)
    hot = cv2.applyColorMap(np.array([[255]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1].astype(float)
    drawn = LiveMap(image, heat, 0.9, "supported", {}).overlay(0.8)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    np.testing.assert_allclose(drawn[1, 0], 0.2 * 100 + 0.8 * hot, atol=1)
    denied = LiveMap(image, heat, 0.9, "artefact", {}).overlay(0.8)
    assert denied[1, 0].tolist() == [round(0.2 * 100 + 0.8 * 255)] * 3


@pytest.mark.parametrize("fill", ["grey", "paired real"])
def test_the_score_without_a_region_is_the_detectors_on_the_filled_image(live: LiveDetector, fill: str) -> None:
    image, real = photo(PIXELS, PIXELS), photo(PIXELS, PIXELS, seed=1)
    region = np.zeros((PIXELS * 2, PIXELS * 2), bool)  # an editor may show the image larger
    region[20:60, 40:80] = True
    before, after = live.without(View(image), region, fill, real)
    filled = image.copy()
    filled[10:30, 20:40] = 128 if fill == "grey" else real[10:30, 20:40]
    assert before == pytest.approx(probability(live, image), abs=1e-5)
    assert after == pytest.approx(probability(live, filled), abs=1e-5) and after != before


def test_blur_fills_with_the_same_scene(live: LiveDetector) -> None:
    plain = np.full((PIXELS, PIXELS, 3), 90, np.uint8)  # blurred it stays as it is
    before, after = live.without(View(plain), np.ones((4, 4), bool), "blur")
    assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize(
    ("region", "fill", "says"),
    [
        (np.zeros((4, 4), bool), "grey", "nothing is painted"),
        (np.ones((4, 4), bool), "paired real", "no paired real image"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(live: LiveDetector, region: np.ndarray, fill: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        live.without(View(photo(PIXELS, PIXELS)), region, fill)


def test_the_brushed_region_is_where_any_layer_is_painted() -> None:
    layers = [np.zeros((3, 3, 4), np.uint8) for _ in range(2)]
    layers[0][0, 0, 3] = layers[1][2, 1, 3] = 255
    assert np.argwhere(region_of(layers)).tolist() == [[0, 0], [2, 1]] and not region_of([]).any()


def test_every_face_of_a_photograph_can_be_picked(live: LiveDetector, tmp_path: Path) -> None:
    faces = [Face((x, 20.0, x + 60, 80.0), TEMPLATE / 112 * 60 + (x, 20)) for x in (10.0, 120.0)]
    with_faces = LiveDetector(live.detector, Photographs(PIXELS, "all", lambda photo: faces))
    cv2.imwrite(str(tmp_path / "two.png"), photo(100, 200))
    assert [view.face for view in with_faces.open(tmp_path / "two.png").views] == faces


def test_a_frame_of_a_video_is_picked(live: LiveDetector, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for level in (20, 120, 220):
            frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    opened = live.open(tmp_path / "clip.mp4", 1)
    assert opened.frames == 3 and abs(opened.views[0].image.mean() - 120) < 8
    assert abs(live.open(tmp_path / "clip.mp4", 99).views[0].image.mean() - 220) < 8


def test_a_file_that_is_no_image_is_said(live: LiveDetector, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(UnreadableImage, match="not an image"):
        live.open(tmp_path / "x.png")


def test_without_gradio_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['gradio'] = None; import importlib.util as u; f = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *more: None if name == 'gradio' else f(name, *more)\n"
    hidden += f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['app']; import runpy; runpy.run_module('utils.app', run_name='__main__')"
    done: Any = subprocess.run(
        [sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 2
        and "the live app needs the package gradio, which is missing: pip install gradio" in done.stderr
    )
