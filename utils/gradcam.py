"""The engine: tokens of named encoder layers, the gradients of a score with respect to them, one map per layer.

One forward pass and one `torch.autograd.grad` serve all layers and the whole batch. The model is left exactly as it was
found: hooks, `training` flags, `requires_grad`, `.grad` and the random state (see `explaining`).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cam.layers import LayerError, Site
from utils.cam.methods import Method
from utils.cam.targets import Target, score_weights
from utils.errors import InputError, RunError

# Patch gradients of a logit are about 1e-5, below what float16 resolves: there the score is scaled before backward, by
# the largest of these factors with which the picture's gradients do not overflow. Powers of two: they round nothing.
HALF_SCORE_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0, 2.0**-5, 2.0**-10)

# A range of this share of the peak is rounding: a sum over 1,024 channels of equal tokens differs by 1e-5 now and then.
FLAT = 1e-4

Prediction = Dict[str, Tensor]


class NonFiniteMapError(RunError):
    """NaN or infinity in the maps or logits of some pictures of a batch, whose positions are `samples`."""

    def __init__(self, message: str, samples: Sequence[int]) -> None:
        super().__init__(message)
        self.samples = tuple(samples)


class Tokens(NamedTuple):
    """Activations and gradients at one site, still with prefix tokens: (B, T, C), or (B, C, h, w) of a convolution."""

    A: Tensor
    G: Tensor


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


@dataclass(frozen=True)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `target` names what each picture's map explains ("fake", "real" or "margin"); `layers` maps the layer's name, as it
    was given, to its maps, in the order asked for.
    """

    prediction: Prediction
    target: list[str]
    layers: dict[str, LayerMaps]

    @property
    def logits(self) -> Tensor:
        """(B, 2): real, fake."""
        return self.prediction["cls"]


# -------------------------------------------------------------------------------------------- one forward, one backward

# Two explanations at once would see each other's frozen weights and global random state: one after the other, also of
# different detectors. What is to be put back is noted inside, where no other explanation has changed it.
_one_at_a_time = threading.RLock()


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode with constant weights and gradients enabled, put back as it was afterwards."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("the model was built inside torch.inference_mode(), which forbids gradients: build it outside")
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with _one_at_a_time, torch.random.fork_rng(devices=sorted(devices, key=str)):
        modes = [(module, module.training) for module in model.modules()]
        parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in parameters:
                parameter.requires_grad_(requires_grad)


@contextmanager
def tapped(sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Hooks on `sites` that fill the yielded dict with their tokens during the forward pass.

    The graph begins at the first site that runs: what is before it records nothing, since the weights are constant
    and the tokens there become a leaf. The tower goes on with a copy, so that an in-place ReLU cannot overwrite them.
    A forward pass that another thread makes meanwhile is let through untouched.
    """
    tokens: dict[str, Tensor] = {}
    thread = threading.get_ident()

    def tap(site: Site, value: Any) -> Any:
        if site.name in tokens:
            raise LayerError(f"layer {site.name!r} runs more than once in one forward pass: name one that runs once")
        first = value[0] if isinstance(value, tuple) and value else value
        if not isinstance(first, Tensor):
            raise LayerError(
                f"layer {site.name!r} passes on {type(first).__name__}, not a tensor of tokens: name another"
            )
        tokens[site.name] = first if first.requires_grad else first.detach().requires_grad_()
        passed_on = tokens[site.name].clone()
        return (passed_on, *value[1:]) if isinstance(value, tuple) else passed_on

    def input_hook(site: Site) -> Callable[..., Any]:
        return lambda module, inputs: tap(site, inputs) if threading.get_ident() == thread else None

    def output_hook(site: Site) -> Callable[..., Any]:
        return lambda module, inputs, output: tap(site, output) if threading.get_ident() == thread else None

    with ExitStack() as hooks:
        for site in sites:
            if site.reads_input:
                handle = site.module.register_forward_pre_hook(input_hook(site))
            else:
                handle = site.module.register_forward_hook(output_hook(site))
            hooks.callback(handle.remove)
        yield tokens


def token_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    forward: Callable[[], Prediction],
    target: Target,
    label: Tensor | None = None,
) -> tuple[Prediction, list[str], dict[str, Tokens]]:
    """Run `forward` once and differentiate its score once with respect to the tokens of all `sites`.

    Samples are independent, so the gradient of the batch's summed score is each picture's own gradient.
    Returns the prediction (detached), the target's name per picture, and activations and gradients per site, detached.
    Raises LayerError for a site that does not run or that the score does not depend on.
    """
    with explaining(model), tapped(sites) as tokens:
        prediction = forward()
        logits = prediction["cls"]
        weights, names = score_weights(logits.detach().float(), target, label)
        for site in sites:
            if site.name not in tokens:
                raise LayerError(f"layer {site.name!r} does not run in the detector's forward pass: name another")
        gradients = _gradients(logits, weights, [tokens[site.name] for site in sites])
    captured = {}
    for site, G in zip(sites, gradients):
        if G is None:
            raise LayerError(
                f"the score does not depend on layer {site.name!r} at all: name one that the head reads from"
            )
        captured[site.name] = Tokens(tokens[site.name].detach(), G)
    return {key: value.detach() for key, value in prediction.items()}, names, captured


def _gradients(logits: Tensor, weights: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not logits.requires_grad:
        return [None] * len(tokens)
    score = (logits.to(_map_dtype(logits)) * weights.to(_map_dtype(logits))).sum(dim=1)
    if any(one.dtype == torch.float16 for one in (logits, *tokens)):
        return _half_gradients(score, tokens)
    return torch.autograd.grad(score.sum(), list(tokens), allow_unused=True)


def _half_gradients(score: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """As float32. Each picture has a scale of its own: what overflows in one must not coarsen the others' gradients."""
    scale = torch.full_like(score, HALF_SCORE_SCALES[0])
    for lower in (*HALF_SCORE_SCALES[1:], None):
        gradients = torch.autograd.grad((score * scale).sum(), list(tokens), allow_unused=True, retain_graph=True)
        reached = [G for G in gradients if G is not None]
        finite = [torch.isfinite(G).flatten(1).all(dim=1) for G in reached]
        overflown = ~torch.stack(finite).all(dim=0) if finite else torch.zeros_like(score, dtype=torch.bool)
        if lower is None or not overflown.any():
            break
        scale = torch.where(overflown, torch.full_like(scale, lower), scale)
    return [G if G is None else G.float() / scale.view(-1, *[1] * (G.ndim - 1)) for G in gradients]


def _map_dtype(tokens: Tensor) -> torch.dtype:
    """Map arithmetic is float32, or float64 for a float64 model."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------------------------------- tokens to pictures


def on_grid(tokens: Tensor, grid: tuple[int, int] | None, name: str) -> Tensor:
    """Tokens (B, T, C) → (B, C, h, w): the prefix tokens (CLS) dropped, the patches in rows, as a view.

    `grid` is (h, w) = picture size ÷ patch size; a convolution's (B, C, h, w) passes as it is.
    """
    if tokens.ndim == 4:
        return tokens.to(_map_dtype(tokens))
    if tokens.ndim != 3 or grid is None or tokens.shape[1] < grid[0] * grid[1]:
        raise LayerError(
            f"layer {name!r} gives a tensor of shape {tuple(tokens.shape)}, which has no patch tokens"
            + (f" of a {grid[0]}x{grid[1]} grid" if grid else "")
            + ": name an encoder block or a module inside one"
        )
    prefix = tokens.shape[1] - grid[0] * grid[1]
    patches = tokens[:, prefix:].to(_map_dtype(tokens))
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
