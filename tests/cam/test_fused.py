"""Maps of several layers fused into one: by hand, and by OpenCV's bilinear resizing in float64."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.gradcam_kit.engine.maps import LayerMaps, fused

SIZE = (12, 8)


def maps_of(signed: Tensor) -> LayerMaps:
    return LayerMaps.of(signed, signed.relu(), SIZE)


def enlarged(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.asarray(cv2.resize(grid.astype(np.float64), (columns, rows), interpolation=cv2.INTER_LINEAR))


def test_every_layer_weighs_the_same_whatever_its_scale() -> None:
    """Raw: the mean of min-max normalised maps. Signed: the mean of signed maps over their largest magnitudes."""
    small = torch.tensor([[[1.0, 2.0], [-4.0, 0.0]]])
    large = torch.tensor([[[0.0, 3000.0], [1000.0, -500.0]]])
    found = fused([maps_of(small), maps_of(large)], SIZE)
    expected_raw = (np.array([[0.5, 1], [0, 0]]) + np.array([[0, 1], [1 / 3, 0]])) / 2
    expected_signed = (np.array([[0.25, 0.5], [-1, 0]]) + np.array([[0, 1], [1 / 3, -1 / 6]])) / 2
    np.testing.assert_allclose(found.raw[0], expected_raw, atol=1e-6)
    np.testing.assert_allclose(found.signed[0], expected_signed, atol=1e-6)
    shares = enlarged(expected_raw, *SIZE)
    np.testing.assert_allclose(found.normalised[0], (shares - shares.min()) / np.ptp(shares), atol=1e-6)
    assert not bool(found.empty.any())


def test_the_finest_grid_is_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse, fine = torch.randn(2, 3, 2, generator=generator), torch.randn(2, 6, 4, generator=generator)
    found = fused([maps_of(coarse), maps_of(fine)], SIZE)
    assert found.grid == (6, 4)
    for i in range(2):
        first, second = ((layer[i] / layer[i].abs().max()).double().numpy() for layer in (coarse, fine))
        np.testing.assert_allclose(found.signed[i], (enlarged(first, 6, 4) + second) / 2, atol=1e-6)


def test_an_empty_map_counts_as_zeros() -> None:
    nothing, something = torch.full((1, 2, 2), -1.0), torch.tensor([[[0.0, 2.0], [0.0, 0.0]]])
    found = fused([maps_of(nothing), maps_of(something)], SIZE)
    np.testing.assert_allclose(found.raw[0], np.array([[0, 0.5], [0, 0]]), atol=1e-6)
    np.testing.assert_allclose(found.signed[0], np.array([[-0.5, 0], [-0.5, -0.5]]), atol=1e-6)
    both = fused([maps_of(nothing), maps_of(nothing)], SIZE)
    assert bool(both.empty.all()) and not bool(both.normalised.any())
