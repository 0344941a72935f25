"""Make a clip's map from activations and gradients: raw, normalised, and each frame's share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...base.allowed import CLIP_METHODS
from ...base.errors import InputError
from ..checks import Checks
from ..maps import Canvas, LayerMaps, refuse_non_finite, refuse_unreached
from ..methods import DEFAULT_EPSILON, METHODS, cam_method, grad_cam, leftover
from ..tokens import Tokens
from ..towers import Grid
from .grid import FRAMES, ClipGrid, steps_of

GRADCAM_3D = "gradcam3d"


@dataclass(frozen=True)
class ClipMaps(LayerMaps):
    """The maps of one layer for B clips of T frames of H × W pixels.

    `signed` and `raw` (B, t, h, w): as in `LayerMaps`, with the layer's own time steps. `normalised` (B, T, H, W):
    `raw` resized in space (bilinear), each step's map repeated for its frames, then min-max normalised over the whole
    clip, so that a frame without evidence stays dark. `time` (B, T): each frame's signed sum; a step's sum is split
    equally among its frames, so that the frames add up to the map. `empty` and `artefact` (B,): per clip.
    """

    time: Tensor

    @classmethod
    def of_clip(cls, signed: Tensor, grid: ClipGrid, canvas: Canvas, leftover: Tensor | None = None) -> ClipMaps:
        """Build the maps of `signed` (B, t, h, w) on `grid`. `leftover`, same shape: bounds values that should be 0."""
        steps = steps_of(grid.times, grid.frames).to(signed.device)
        of = LayerMaps.of(signed, signed.relu(), canvas, leftover)
        sums = signed.flatten(2).sum(dim=2)
        shared = sums / torch.bincount(steps, minlength=grid.times).clamp_min(1).to(sums)
        return cls(signed, of.raw, of.normalised[:, steps], of.empty, of.artefact, canvas, shared[:, steps])

    @property
    def times(self) -> int:
        """Return the layer's number of time steps."""
        return int(self.raw.shape[1])


def check_clip_method(name: str) -> None:
    """Raise InputError for a method that has no map of a clip."""
    if name not in METHODS and name not in CLIP_METHODS:
        known = ", ".join([*METHODS, *CLIP_METHODS])
        raise InputError(f"method {name!r} is not verified for clips of frames; allowed: {known}", "method")


def signed_clip_map(method: str, A: Tensor, G: Tensor, pp_epsilon: float = DEFAULT_EPSILON) -> Tensor:
    """Return the map (B, t, h, w) before ReLU for activations `A` and gradients `G`, both (B, C, t, h, w).

    Image methods compute separate weights for each time step: averaging them over time would hide which frame the score
    depends on. `gradcam3d` is textbook Grad-CAM, with weights averaged over time and space (Selvaraju et al. 2017,
    eq. 1, over (t, h, w)).
    """
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        A, G = A.to(dtype), G.to(dtype)
        if method == GRADCAM_3D:
            return grad_cam(A.flatten(2, 3), G.flatten(2, 3)).unflatten(1, A.shape[2:4])
        of_steps = cam_method(method, pp_epsilon)(_steps(A), _steps(G))
    return of_steps.unflatten(0, (len(A), -1))


def _steps(tensor: Tensor) -> Tensor:
    """Reshape (B, C, t, h, w) to (B·t, C, h, w)."""
    return tensor.transpose(1, 2).flatten(0, 1)


def clip_maps(
    method: str,
    layer: str,
    tokens: Tokens,
    grid: ClipGrid,
    size: tuple[int, int],
    norm_epsilon: float = 0.0,
    pp_epsilon: float = DEFAULT_EPSILON,
) -> ClipMaps:
    """Make a layer's map at `size` (H, W) from its tokens and gradient; `grid` says what their rows are.

    Raises LayerError if the cells' gradients are structurally zero, NonFiniteMapError if a map is not finite.
    """
    clips = len(tokens.A) // (grid.frames if grid.fold == FRAMES else 1)
    A, G = (grid.to_clip(tensor, clips) for tensor in tokens)
    signed = signed_clip_map(method, A, G, pp_epsilon)
    spare = None
    if method == "hirescam":
        spare = leftover(_steps(A), _steps(G), norm_epsilon).unflatten(0, (clips, -1))
    canvas = Canvas.of(size, Grid(grid.rows, grid.columns, grid.prefix, covers=grid.covers))
    checks = Checks()
    refuse_non_finite(signed, f"the map of layer {layer!r}", checks)
    checks.read()
    refuse_unreached(layer, *(bool(each.any()) for each in (G, tokens.G)))
    return ClipMaps.of_clip(signed, grid, canvas, spare)


def share_of_frames(time: Tensor) -> Tensor:
    """Return each frame's share of all positive evidence, in [0, 1], from signed sums (B, T); zeros if none."""
    positive = time.relu()
    total = positive.sum(dim=1, keepdim=True)
    return positive / torch.where(total > 0, total, torch.ones_like(total))
