"""Tokens on their patch grid → maps: raw, normalised, and flagged where they are empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.cam.layers import LayerError
from utils.cam.methods import Method
from utils.cam.tokens import Tokens, map_dtype
from utils.errors import InputError, RunError

# A range of this share of the peak is rounding: a sum over 1,024 channels of equal tokens differs by 1e-5 now and then.
FLAT = 1e-4


class NonFiniteMapError(RunError):
    """NaN or infinity in the maps or logits of some pictures of a batch, whose positions are `samples`."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message)
        self.samples = tuple(samples)


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer for a batch of B pictures of H × W pixels.

    `signed` (B, h, w): the method's sum before ReLU, float32 (float64 for a float64 model), on the model's device.
    `raw` (B, h, w): its ReLU. `normalised` (B, H, W): `raw` resized and min-max normalised, float32 in [0, 1].
    `empty` (B,): bool, on the maps' device; no patch stands out: `raw` is zero everywhere or, within rounding,
    constant, and `normalised` is all zero. Whether a map is empty is decided here and nowhere else.
    """

    signed: Tensor
    raw: Tensor
    normalised: Tensor
    empty: Tensor

    @classmethod
    def of(cls, signed: Tensor, raw: Tensor, size: tuple[int, int]) -> LayerMaps:
        """From the signed and the raw maps, both (B, h, w); `size` (H, W) of the normalised ones."""
        normalised = normalise(raw, size)
        return cls(signed, raw, normalised, normalised.flatten(1).amax(dim=1) == 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.raw.shape[-2], self.raw.shape[-1]


def on_grid(tokens: Tensor, grid: tuple[int, int] | None, name: str) -> Tensor:
    """Tokens (B, T, C) → (B, C, h, w): the prefix tokens (CLS) dropped, the patches in rows, as a view.

    `grid` is (h, w) = picture size ÷ patch size; a convolution's (B, C, h, w) passes as it is.
    """
    if tokens.ndim == 4:
        return tokens.to(map_dtype(tokens))
    if tokens.ndim != 3 or grid is None or tokens.shape[1] < grid[0] * grid[1]:
        raise LayerError(
            f"layer {name!r} gives a tensor of shape {tuple(tokens.shape)}, which has no patch tokens"
            + (f" of a {grid[0]}x{grid[1]} grid" if grid else "")
            + ": name an encoder block or a module inside one"
        )
    prefix = tokens.shape[1] - grid[0] * grid[1]
    patches = tokens[:, prefix:].to(map_dtype(tokens))
    return patches.transpose(1, 2).reshape(patches.shape[0], patches.shape[2], *grid)


def layer_maps(
    captured: Mapping[str, Tokens], method: Method, grid: tuple[int, int] | None, size: tuple[int, int]
) -> dict[str, LayerMaps]:
    """One map per captured layer, resized to `size` (H, W).

    Raises LayerError where the patch gradients are structurally zero, NonFiniteMapError where a map is not finite.
    """
    maps: dict[str, LayerMaps] = {}
    checks: list[Tensor] = []
    for name, (A, G) in captured.items():
        with torch.autocast(A.device.type, enabled=False):
            gradient = on_grid(G, grid, name)
            signed = method(on_grid(A, grid, name), gradient)
            maps[name] = LayerMaps.of(signed, signed.relu(), size)
        finite = torch.isfinite(signed).flatten(1).all(dim=1)
        checks.append(torch.stack([gradient.flatten(1).any(dim=1), (G != 0).flatten(1).any(dim=1), finite]))
    # One transfer for every check of every layer, so that the device is waited for once.
    verdicts = torch.stack(checks).cpu()
    for name, (reached, touched, finite) in zip(captured, verdicts):
        _refuse_meaningless(name, reached, touched, finite)
    return maps


def _refuse_meaningless(name: str, reached: Tensor, touched: Tensor, finite: Tensor) -> None:
    """Each (B,) bool: patch gradients, any gradients, finite map."""
    if not finite.all():
        samples = (~finite).nonzero().flatten().tolist()
        raise NonFiniteMapError(
            f"layer {name!r}: the map of picture(s) {samples} of the batch is NaN or infinite;"
            " check those pictures and the weights, or use --precision fp32",
            samples,
        )
    if reached.any():
        return
    if touched.any():
        raise LayerError(
            f"layer {name!r}: the patch tokens there have a gradient of exactly 0, because the head reads the CLS token"
            " alone and nothing after this point mixes patches into it, so every map would be blank;"
            " name the block itself (encoder.layers.<i> means what that block reads) or an earlier layer"
        )
    raise LayerError(
        f"layer {name!r}: the score's gradient is exactly 0 there for every picture; name another layer or target"
    )


def refuse_non_finite_logits(logits: Tensor) -> None:
    """Raises NonFiniteMapError: where a logit is not finite its gradient may still be, but explains no decision."""
    finite = torch.isfinite(logits).all(dim=1)
    if not finite.all():
        samples = (~finite).nonzero().flatten().tolist()
        raise NonFiniteMapError(
            f"the logits of picture(s) {samples} of the batch are NaN or infinite;"
            " check those pictures and the weights, or use --precision fp32",
            samples,
        )


def normalise(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) ≥ 0 → (B, H, W) float32 in [0, 1]: bilinear (half-pixel centres), then (M - min) / (max - min).

    Per picture. A map without range (all zero or, within rounding, constant) becomes all zero.
    """
    peak = raw.amax(dim=(1, 2), keepdim=True)
    # As shares of the peak, since between values of 1e-40 or 1e38 nothing can be interpolated.
    shares = raw / torch.where(peak > 0, peak, torch.ones_like(peak))
    resized = F.interpolate(shares.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
    lowest = resized.amin(dim=(1, 2), keepdim=True)
    span = resized.amax(dim=(1, 2), keepdim=True) - lowest
    constant = span <= FLAT
    stretched = (resized - lowest) / torch.where(constant, torch.ones_like(span), span)
    return torch.where(constant, torch.zeros_like(stretched), stretched).float()


# Among layer names: the mean of the normalised maps of the other layers.
FUSED = "fused"


def without_fused(layers: Sequence[str]) -> list[str]:
    """The layers that are modules. Raises InputError where `fused` has fewer than two of them to fuse."""
    named = [layer for layer in layers if layer != FUSED]
    if FUSED in layers and len(set(named)) < 2:
        raise InputError(f"layer {FUSED!r} is the mean of the other layers' maps: name at least two beside it")
    return named


def fused(layers: Sequence[LayerMaps], size: tuple[int, int]) -> LayerMaps:
    """The mean over layers of each picture's normalised map, on the finest of their grids, then resized to `size`.

    An empty map counts as zeros. Signed: the mean of the signed maps, each divided by its largest magnitude.
    """
    grid = max((one.grid for one in layers), key=lambda rows_columns: rows_columns[0] * rows_columns[1])
    raw = torch.stack([normalise(one.raw, grid) for one in layers]).mean(dim=0)
    signed = torch.stack([scaled(one.signed, grid) for one in layers]).mean(dim=0)
    return LayerMaps.of(signed, raw, size)


def scaled(signed: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) → (B, H, W) float32 in [-1, 1]: each picture divided by its largest magnitude, zero stays zero."""
    largest = signed.abs().amax(dim=(1, 2), keepdim=True)
    shares = signed / torch.where(largest > 0, largest, torch.ones_like(largest))
    return F.interpolate(shares.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1).float()
