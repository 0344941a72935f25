"""Tokens on their patch grid → maps: raw, normalised, and flagged where they are empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.cam.attention import TokenMaps
from utils.cam.layers import LayerError
from utils.cam.methods import Method
from utils.cam.tokens import Tokens, map_dtype
from utils.cam.towers import Grid
from utils.errors import InputError, RunError

# A range of this share of the peak is rounding: a sum over 1,024 channels of equal tokens differs by 1e-5 now and then.
FLAT = 1e-4


class NonFiniteMapError(RunError):
    """NaN or infinity in the maps or logits of some images of a batch, whose positions are `samples`."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message, "precision")
        self.samples = tuple(samples)


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer for a batch of B images of H × W pixels.

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


def on_grid(tokens: Tensor, grid: Grid | None, name: str) -> Tensor:
    """Tokens (B, T, C) → (B, C, h, w): the prefix tokens (CLS) dropped, the patches in rows, as a view.

    A convolution's (B, C, h, w) passes as it is. Raises LayerError where the tokens are not those of `grid`.
    """
    if tokens.ndim == 4:
        return tokens.to(map_dtype(tokens))
    if tokens.ndim != 3 or grid is None:
        raise LayerError(
            f"layer {name!r} gives a tensor of shape {tuple(tokens.shape)}, which has no patch tokens:"
            " name an encoder block or a module inside one"
        )
    patches = _patches(tokens, grid, name).to(map_dtype(tokens))
    return patches.transpose(1, 2).reshape(patches.shape[0], patches.shape[2], grid.rows, grid.columns)


def _patches(tokens: Tensor, grid: Grid, name: str) -> Tensor:
    """(B, T, ...) → (B, rows · columns, ...), without the prefix tokens. Raises LayerError for another number T."""
    before = tokens.shape[1] - grid.rows * grid.columns
    if before < 0 or grid.prefix not in (None, before):
        expected = f"{grid.rows}x{grid.columns} patches" + (f" and {grid.prefix} before them" if grid.prefix else "")
        raise LayerError(
            f"layer {name!r} gives {tokens.shape[1]} tokens, but {expected} are expected: name an encoder block or a"
            " module inside one"
        )
    return tokens[:, before:]


def layer_maps(
    tokens: Mapping[str, Tokens], method: Method, grid: Grid | None, size: tuple[int, int]
) -> dict[str, LayerMaps]:
    """One map per layer from its tokens, resized to `size` (H, W).

    Raises LayerError where the patch gradients are structurally zero, NonFiniteMapError where a map is not finite.
    """
    maps: dict[str, LayerMaps] = {}
    checks: list[Tensor] = []
    for name, (A, G) in tokens.items():
        with torch.autocast(A.device.type, enabled=False):
            gradient = on_grid(G, grid, name)
            signed = method(on_grid(A, grid, name), gradient)
            maps[name] = LayerMaps.of(signed, signed.relu(), size)
        finite = torch.isfinite(signed).flatten(1).all(dim=1)
        checks.append(torch.stack([gradient.flatten(1).any(dim=1), (G != 0).flatten(1).any(dim=1), finite]))
    # One transfer for every check of every layer, so that the device is waited for once.
    verdicts = torch.stack(checks).cpu()
    for name, (reached, touched, finite) in zip(tokens, verdicts):
        refuse_non_finite(finite, f"the map of layer {name!r}")
        _refuse_unreached(name, reached, touched)
    return maps


def to_layer_maps(maps: Mapping[str, TokenMaps], grid: Grid, size: tuple[int, int]) -> dict[str, LayerMaps]:
    """Maps of tokens by layer, without the prefix tokens, as maps of the image. Raises NonFiniteMapError."""
    found = {}
    for name, pair in maps.items():
        signed, raw = (_patches(tokens, grid, name).unflatten(1, (grid.rows, grid.columns)) for tokens in pair)
        refuse_non_finite(torch.isfinite(raw).flatten(1).all(dim=1), f"the map of layer {name!r}")
        found[name] = LayerMaps.of(signed, raw, size)
    return found


def _refuse_unreached(name: str, reached: Tensor, touched: Tensor) -> None:
    """Each (B,) bool: whether any patch has a gradient, whether any token has."""
    if reached.any():
        return
    if touched.any():
        raise LayerError(
            f"layer {name!r}: the patch tokens there have a gradient of exactly 0, because the head reads the CLS token"
            " alone and nothing after this point mixes patches into it, so every map would be blank;"
            " name the block itself (encoder.layers.<i> means what that block reads) or an earlier layer"
        )
    raise LayerError(
        f"layer {name!r}: the score's gradient is exactly 0 there for every image; name another layer or target"
    )


def refuse_non_finite(finite: Tensor, what: str) -> None:
    """Raises NonFiniteMapError for the images where `finite` (B,) bool is not true; `what` says of what."""
    finite = finite.cpu()
    if not finite.all():
        samples = (~finite).nonzero().flatten().tolist()
        raise NonFiniteMapError(
            f"NaN or infinity in {what} of image(s) {samples} of the batch;"
            " check these images and the weights, or compute in fp32",
            samples,
        )


def normalise(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) ≥ 0 → (B, H, W) float32 in [0, 1]: bilinear (half-pixel centres), then (M - min) / (max - min).

    Per image. A map without range (all zero or, within rounding, constant) becomes all zero.
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
    """The mean over layers of each image's normalised map, on the finest of their grids, then resized to `size`.

    An empty map counts as zeros. Signed: the mean of the signed maps, each divided by its largest magnitude.
    """
    grid = max((maps.grid for maps in layers), key=lambda rows_columns: rows_columns[0] * rows_columns[1])
    raw = torch.stack([normalise(maps.raw, grid) for maps in layers]).mean(dim=0)
    signed = torch.stack([scaled(maps.signed, grid) for maps in layers]).mean(dim=0)
    return LayerMaps.of(signed, raw, size)


def scaled(signed: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) → (B, H, W) float32 in [-1, 1]: each image divided by its largest magnitude, zero stays zero."""
    largest = signed.abs().amax(dim=(1, 2), keepdim=True)
    shares = signed / torch.where(largest > 0, largest, torch.ones_like(largest))
    return F.interpolate(shares.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1).float()
