"""Colour, blend and type, against OpenCV and by eye-sized facts about the pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from utils.gradcam_kit.base.allowed import COLORMAPS, IMAGE_FORMATS
from utils.gradcam_kit.drawing.overlays import (
    CAPTION,
    LONGEST,
    MARGIN,
    TITLE,
    PastedCrop,
    colour,
    comparison,
    encode,
    layer_images,
    overlay,
    panels,
    paste,
    text_line,
)
from utils.gradcam_kit.engine.maps import LayerMaps


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colours_are_opencvs(colormap: str) -> None:
    maps = torch.rand(2, 9, 7)
    levels = (maps.numpy() * 255).round().astype(np.uint8)
    flag = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    for got, level in zip(colour(maps, colormap).numpy(), levels, strict=True):
        np.testing.assert_array_equal(got, cv2.applyColorMap(level, flag)[..., ::-1])


def test_jet_is_red_where_the_map_is_high_and_blue_where_it_is_low() -> None:
    red, green, blue = colour(torch.tensor([[0.0, 1.0]])).numpy()[0].T.astype(int)
    assert blue[0] > 100 and red[0] == green[0] == 0
    assert red[1] > 100 and blue[1] == green[1] == 0


def test_overlay_is_the_mean_of_image_and_colour_and_spares_empty_maps() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    maps = torch.rand(3, 8, 8)
    drawn = overlay(images, maps, torch.tensor([False, True, False]), "turbo").numpy()
    plain = images.permute(0, 2, 3, 1).numpy()
    expected = (plain.astype(float) + colour(maps, "turbo").numpy()) / 2
    np.testing.assert_array_equal(drawn[1], plain[1])
    for i in (0, 2):
        np.testing.assert_allclose(drawn[i], expected[i], atol=0.51)


@pytest.mark.parametrize("signed", [False, True])
def test_a_map_that_its_check_calls_an_artefact_has_no_colour(signed: bool) -> None:
    images = torch.full((2, 3, 4, 4), 90, dtype=torch.uint8)
    raw = torch.rand(2, 4, 4) + 0.1
    drawn = layer_images(images, {"a": LayerMaps.of(raw, raw, (4, 4))}, "jet", signed, {"a": [True, False]})
    denied, believed = (layers[0] for layers in drawn)
    low, high = raw[0].min(), raw[0].max()
    grey = (90 + 255 * (raw[0] - low) / (high - low)) / 2
    np.testing.assert_allclose(denied.overlay, np.repeat(grey.numpy()[..., None], 3, axis=2), atol=1)
    assert np.ptp(believed.overlay.astype(int), axis=2).any()
    captions = [panels(np.zeros((4, 4, 3), np.uint8), [layer])[1][0] for layer in (denied, believed)]
    assert captions == ["a (artefact)", "a"]


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_encoded_images_read_back(image_format: str) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], np.full((64, 64), 90, np.uint8)), axis=-1)
    back = cv2.imdecode(np.frombuffer(encode(image, image_format), np.uint8), cv2.IMREAD_COLOR)
    assert back is not None
    error = np.abs(back[..., ::-1].astype(int) - image)
    assert error.max() == 0 if image_format == "png" else error.mean() < 3


def test_comparison_holds_every_panel_untouched_under_its_title() -> None:
    panels = [(f"encoder.layers.{i}", np.full((50, 224, 3), 40 * i + 20, np.uint8)) for i in range(3)]
    canvas = comparison(panels, "true label: fake   prediction: real")
    top = TITLE + MARGIN
    assert canvas.shape == (top + 50 + CAPTION + MARGIN, MARGIN + 3 * (224 + MARGIN), 3)
    for i, (_, panel) in enumerate(panels):
        left = MARGIN + i * (224 + MARGIN)
        np.testing.assert_array_equal(canvas[top : top + 50, left : left + 224], panel)
        assert (canvas[top + 50 : top + 50 + CAPTION, left : left + 224] < 128).any()  # ink of the caption
    assert (canvas[:TITLE] < 128).any() and (canvas[:, : MARGIN - 1] == 255).all()
    warned = comparison(panels, "title", warning="random weights")
    assert warned.shape[0] == canvas.shape[0] + TITLE


@pytest.mark.parametrize("text", ["x" * 500, "Größe  人脸 ✗", "\udcff broken", ""])
def test_any_text_fits_its_line(text: str) -> None:
    line = text_line(text, 224, 24, 14)
    assert line.shape == (24, 224, 3) and line.dtype == np.uint8
    assert (line[:, -1] == 255).all() and (line[0] == 255).all() and (line[-1] == 255).all()


def test_a_crops_overlay_is_pasted_where_the_crop_was_taken() -> None:
    """A crop cut out by hand, twice as large as in the photograph and turned by a right angle."""
    photo = np.full((60, 80, 3), 100, dtype=np.uint8)
    overlay = np.zeros((20, 40, 3), dtype=np.uint8)
    overlay[:, :20] = (255, 0, 0)  # left half red, right half blue
    overlay[:, 20:] = (0, 0, 255)
    # The crop's x runs down the photograph, its y to the left: photo (x, y) → crop (2 (y - 10), 2 (50 - x)).
    matrix = np.array([[0, 2, -20], [-2, 0, 100]], dtype=float)
    drawn = paste(photo.copy(), overlay, matrix)
    assert drawn[15, 45].tolist() == [255, 0, 0] and drawn[27, 45].tolist() == [0, 0, 255]
    outside = np.ones((60, 80), dtype=bool)
    outside[8:33, 38:53] = False
    assert (drawn[outside] == 100).all()


def test_a_large_photograph_is_made_smaller_with_its_overlay_in_place() -> None:
    photo = np.zeros((1000, 2 * LONGEST, 3), dtype=np.uint8)
    overlay = np.full((50, 50, 3), 200, dtype=np.uint8)
    pasted = PastedCrop(photo, np.array([[0.5, 0, -500], [0, 0.5, -200]])).over(overlay)  # x 1000 to 1100, y 400 to 500
    assert pasted.shape[1] == LONGEST
    scale = LONGEST / photo.shape[1]
    assert pasted[round(450 * scale), round(1050 * scale)].tolist() == [200, 200, 200]
    assert pasted[round(450 * scale), round(1150 * scale)].tolist() == [0, 0, 0]
