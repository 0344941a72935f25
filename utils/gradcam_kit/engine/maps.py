"""Make maps from tokens on the patch grid: raw, normalised, and flagged if empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import RunError
from .attention_methods import TokenMaps
from .checks import Checks
from .layers import FUSED, SCALED, SUM, LayerError
from .real.contrast import scaled_mean, sharpened
from .tokens import without_prefix
from .towers import Grid

# A range below this share of the peak is rounding: sums over 1,024 channels of equal tokens can differ by 1e-5.
FLAT = 1e-4


class NonFiniteMapError(RunError):
    """Raised for NaN or infinity in maps or logits; `samples` holds the positions of these images in the batch."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message, "precision")
        self.samples = tuple(samples)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The image size (H, W) in pixels, and the part that the patches cover, `spanned`, from the top left.

    Patches cover less if the patch size does not divide the image size, and more if the tower pads the image. `seen` is
    the part of the image that the network sees.
    """

    size: tuple[int, int]
    spanned: tuple[int, int]
    seen: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        (height, width), (rows, columns) = self.size, self.spanned
        object.__setattr__(self, "seen", (min(height, rows), min(width, columns)))

    @classmethod
    def of(cls, size: tuple[int, int], grid: Grid | None) -> Canvas:
        """Return the canvas of a grid; without one (convolutional network), maps cover the whole image."""
        if grid is None:
            return cls(size, size)
        rows, columns = (max(1, round(pixels * share)) for pixels, share in zip(size, grid.covers, strict=True))
        return cls(size, (rows, columns))

    def stretch(self, maps: Tensor) -> Tensor:
        """Resize (B, h, w) to (B, *seen), bilinear with half-pixel centres, so that each value stays on its patch.

        In a clip's map (B, t, h, w), each step by itself.
        """
        as_images = maps.flatten(0, -3).unsqueeze(1)
        spanned = F.interpolate(as_images, size=self.spanned, mode="bilinear", align_corners=False).squeeze(1)
        return spanned[:, : self.seen[0], : self.seen[1]].unflatten(0, maps.shape[:-2])

    def pad(self, seen: Tensor) -> Tensor:
        """Pad (B, *seen) to (B, H, W) with zeros where the network sees nothing."""
        if self.seen == self.size:
            return seen
        return F.pad(seen, (0, self.size[1] - self.seen[1], 0, self.size[0] - self.seen[0]))


Size = Canvas | tuple[int, int]  # (H, W) alone: maps cover all of it


def _canvas(size: Size) -> Canvas:
    return size if isinstance(size, Canvas) else Canvas(size, size)


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer for a batch of B images of H × W pixels.

    `signed` (B, h, w): the method's sum before ReLU, float32 (float64 for a float64 model), on the model's device.
    `raw` (B, h, w): its ReLU. `normalised` (B, H, W): `raw` resized and min-max normalised, float32 in [0, 1].
    `empty` (B,): bool, on the maps' device: no patch stands out, because `raw` is zero or constant within rounding, or
    because the map is an artefact; `normalised` is then all zero. Only this class decides whether a map is empty.
    `artefact` (B,): bool: the map is not zero, but nowhere larger than the rounding error of a sum of zero.
    `canvas`: the pixels that the network sees; `normalised` is zero elsewhere.
    """

    signed: Tensor
    raw: Tensor
    normalised: Tensor
    empty: Tensor
    artefact: Tensor
    canvas: Canvas

    @classmethod
    def of(cls, signed: Tensor, raw: Tensor, size: Size, leftover: Tensor | None = None) -> LayerMaps:
        """Build the maps from signed and raw maps, both (B, h, w); `size`: of the normalised ones.

        `leftover` (B, h, w): the bound on values that should be 0, from `engine.methods.leftover`.
        """
        normalised, empty = _stretched(raw, size)
        if leftover is None:
            artefact = torch.zeros_like(empty)
        else:
            artefact = (signed.abs() <= leftover).flatten(1).all(dim=1) & signed.flatten(1).any(dim=1)
            normalised, empty = _but(artefact, normalised), empty | artefact
        return cls(signed, raw, normalised, empty, artefact, _canvas(size))

    def split(self, count: int) -> list[LayerMaps]:
        """Split one batch of maps into the maps of `count` layers."""
        if count == 1:
            return [self]
        names = ("signed", "raw", "normalised", "empty", "artefact")
        chunks = {name: getattr(self, name).chunk(count) for name in names}
        return [replace(self, **{name: chunk[i] for name, chunk in chunks.items()}) for i in range(count)]

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch grid."""
        return self.raw.shape[-2], self.raw.shape[-1]


Parts = Mapping[str, Sequence[str]]  # layer → the captured layers that make up its map: itself, or several blocks


def combined(layer: str, by_rule: Sequence[Sequence[Tensor]]) -> Tensor:
    """Add the signed maps of a layer's parts, by backward rule, to one signed map (B, h, w).

    For SCALED, and for two rules, it first scales each map to unit deviation.
    """
    if layer != SCALED and len(by_rule) == 1:
        return _sum(by_rule[0])
    return _sum([scaled_mean(maps) for maps in by_rule])


def layer_maps(
    by_rule: Sequence[Mapping[str, Tensor]],
    reached: Mapping[str, Tensor],
    size: Size,
    checks: Checks,
    parts: Parts | None = None,
    leftovers: Mapping[str, Tensor] | None = None,
    sharpen: bool = False,
) -> dict[str, LayerMaps]:
    """Turn signed maps (B, h, w), by backward rule and part, into maps of the image at `size`, by layer.

    `reached`, by part: whether the score can depend on the patches at all, see `tokens.reach`. `parts`: the parts of
    each layer; None: each part is a layer. `leftovers`, by part: see `LayerMaps.of`. `sharpen`: sharpen the raw map
    with `contrast.sharpened`, as always for SCALED. `checks` raises LayerError if the patch gradients are structurally
    zero, NonFiniteMapError if a map is not finite.
    """
    parts = parts or {part: [part] for part in by_rule[0]}
    leftovers = leftovers or {}
    signed = {
        layer: combined(layer, [[of[part] for part in added] for of in by_rule]) for layer, added in parts.items()
    }
    alike: dict[Any, list[str]] = {}  # layers to draw at once
    for layer, one in signed.items():
        alike.setdefault((one.shape, one.dtype, one.device, layer == SCALED), []).append(layer)
    maps: dict[str, LayerMaps] = {}
    finite: dict[str, Tensor] = {}
    for layers in alike.values():
        together, leftover = torch.cat([signed[layer] for layer in layers]), None
        if leftovers and SCALED not in layers:
            leftover = torch.cat([_sum([leftovers[part] for part in parts[layer]]) for layer in layers])
        with torch.autocast(together.device.type, enabled=False):
            raw = sharpened(together) if sharpen or SCALED in layers else together.relu()
            drawn = LayerMaps.of(together, raw, size, leftover)
        maps.update(zip(layers, drawn.split(len(layers)), strict=True))
        finite.update(zip(layers, all_finite(together).chunk(len(layers)), strict=True))
    found = [_any([reached[part] for part in parts[layer]]) for layer in signed]
    known = torch.cat([torch.stack(found), torch.stack([finite[layer] for layer in signed]).unsqueeze(1)], dim=1)
    checks.append((known, partial(_refuse_maps, list(signed))))
    return {layer: maps[layer] for layer in signed}


def all_finite(values: Tensor) -> Tensor:
    """Return which rows of `values` (B, ...) are free of NaN and infinity, (B,) bool."""
    return values.abs().flatten(1).amax(dim=1) < torch.inf


def _refuse_maps(layers: Sequence[str], found: Tensor) -> None:
    """Raise for bad maps. `found` (L, 3, B) bool: whether any patch has a gradient, any token has, all is finite."""
    for layer, (reached, touched, finite) in zip(layers, found.tolist(), strict=True):
        _refuse_where_not(f"the map of layer {layer!r}", finite)
        refuse_unreached(layer, any(reached), any(touched))


def to_layer_maps(
    maps: Mapping[str, TokenMaps],
    grid: Grid,
    size: Size,
    checks: Checks,
    sum_of: str = "signed",
    parts: Parts | None = None,
) -> dict[str, LayerMaps]:
    """Turn token maps by layer, without prefix tokens, into maps of the image. Raises NonFiniteMapError.

    `parts`, `checks`: as for `layer_maps`. `sum_of`: whether to add the parts' "signed" or "raw" maps; the raw map is
    then the ReLU of the sum, or the sum of the raw maps. SCALED is made of the signed maps,
    each scaled to unit deviation, and then sharpened.
    """
    found = {}
    for layer, added in (parts or {name: [name] for name in maps}).items():
        on_image = [
            TokenMaps(*(without_prefix(of, grid, layer).unflatten(1, (grid.rows, grid.columns)) for of in maps[part]))
            for part in added
        ]
        signed = combined(layer, [[pair.signed for pair in on_image]])
        if layer == SCALED:
            raw = sharpened(signed)
        else:
            summed = len(added) > 1 and sum_of == "signed"
            raw = signed.relu() if summed else _sum([pair.raw for pair in on_image])
        refuse_non_finite(raw, f"the map of layer {layer!r}", checks)
        found[layer] = LayerMaps.of(signed, raw, size)
    return found


def _sum(maps: Sequence[Tensor]) -> Tensor:
    total = maps[0]
    for one in maps[1:]:
        total = total + one
    return total


def _any(several: Sequence[Tensor]) -> Tensor:
    """Return the elementwise "or" of several bool tensors of equal shape."""
    return torch.stack(list(several)).any(dim=0) if len(several) > 1 else several[0]


def refuse_unreached(name: str, reached: bool, touched: bool) -> None:
    """Raise LayerError unless a patch has a gradient (`reached`). `touched`: whether any token has one."""
    if reached:
        return
    if touched:
        raise LayerError(
            f"layer {name!r}: the patch tokens there have a gradient of exactly 0, because the head reads only the CLS"
            " token and nothing after this point mixes patches into it, so every map would be blank;"
            " name the block itself (encoder.layers.<i> means the block's input) or an earlier layer"
        )
    raise LayerError(
        f"layer {name!r}: the score's gradient is exactly 0 there for every image; name another layer or target"
    )


def refuse_non_finite(values: Tensor, what: str, checks: Checks) -> None:
    """Let `checks` raise NonFiniteMapError for images of `values` (B, ...) with NaN or infinity; `what` names them."""
    checks.append((all_finite(values), lambda finite: _refuse_where_not(what, finite.tolist())))


def _refuse_where_not(what: str, finite: Sequence[bool]) -> None:
    if not all(finite):
        samples = [i for i, of_image in enumerate(finite) if not of_image]
        raise NonFiniteMapError(
            f"NaN or infinity in {what} of image(s) {samples} of the batch;"
            " check these images and the weights, or compute in fp32",
            samples,
        )


def normalise(raw: Tensor, size: Size) -> Tensor:
    """(B, h, w) ≥ 0 → (B, H, W) float32 in [0, 1]: bilinear (half-pixel centres), then (M - min) / (max - min).

    Per image, over what the network has seen of it; the rest is zero. A map without range (all zero or, within
    rounding, constant) becomes all zero. A clip's map (B, t, h, w) has one range.
    """
    return _stretched(raw, size)[0]


def _stretched(raw: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return the maps of `normalise`, and for each image whether its map has no range, (B,) bool."""
    canvas, axes = _canvas(size), tuple(range(1, raw.ndim))
    peak = raw.amax(dim=axes, keepdim=True)
    # As shares of the peak: values of 1e-40 or 1e38 cannot be interpolated.
    resized = canvas.stretch(raw / peak.masked_fill(peak <= 0, 1))
    # aminmax along an axis is ten times slower on a CPU
    lowest, highest = resized.amin(dim=axes, keepdim=True), resized.amax(dim=axes, keepdim=True)
    span = highest - lowest
    constant = span <= FLAT
    stretched = (resized - lowest).div_(span.masked_fill_(constant, 1)).masked_fill_(constant, 0)
    return canvas.pad(stretched.float()), constant.flatten()


def in_order(maps: Mapping[str, LayerMaps], layers: Sequence[str], size: Size) -> dict[str, LayerMaps]:
    """Return the maps of `layers` in order; FUSED is made from all of `maps` except SUM and SCALED."""
    found = dict(maps)
    if FUSED in layers:
        found[FUSED] = fused([one for layer, one in maps.items() if layer not in (SUM, SCALED)], size)
    return {layer: found[layer] for layer in dict.fromkeys(layers)}


def fused(layers: Sequence[LayerMaps], size: Size) -> LayerMaps:
    """Average the layers' normalised maps on the finest of their grids, then resize to `size`.

    An empty map counts as zeros. `signed` is the mean of the signed maps, each divided by its largest magnitude; there,
    only an artefact counts as zeros.
    """
    grid = max((maps.grid for maps in layers), key=lambda rows_columns: rows_columns[0] * rows_columns[1])
    raw = torch.stack([_but(maps.empty, normalise(maps.raw, grid)) for maps in layers]).mean(dim=0)
    signed = torch.stack([_but(maps.artefact, scaled(maps.signed, grid)) for maps in layers]).mean(dim=0)
    return LayerMaps.of(signed, raw, size)


def _but(without: Tensor, maps: Tensor) -> Tensor:
    """Return `maps` (B, ...) with zeros for the images where `without` (B,) is true."""
    return torch.where(without.view(-1, *[1] * (maps.ndim - 1)), torch.zeros_like(maps), maps)


def scaled(signed: Tensor, size: Size) -> Tensor:
    """Resize (B, h, w) to (B, H, W) float32 in [-1, 1]: each image over its largest magnitude; zero stays zero.

    A clip's map (B, t, h, w) has one largest magnitude.
    """
    largest = signed.abs().amax(dim=tuple(range(1, signed.ndim)), keepdim=True)
    shares = signed / torch.where(largest > 0, largest, torch.ones_like(largest))
    canvas = _canvas(size)
    return canvas.pad(canvas.stretch(shares)).float()
