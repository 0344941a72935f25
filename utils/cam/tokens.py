"""Tokens at named points of a tower and the gradients of a score with respect to them, from one pass each way."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.cam.frozen import frozen_for_explaining
from utils.cam.layers import LayerError, Site
from utils.cam.targets import Target, score_weights
from utils.cam.towers import Grid

# Patch gradients of a logit are about 1e-5, below what float16 resolves: there the score is scaled before backward, by
# the largest of these factors with which the image's gradients do not overflow. Powers of two: they round nothing.
HALF_SCORE_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0, 2.0**-5, 2.0**-10)


Prediction = Dict[str, Tensor]


class Tokens(NamedTuple):
    """Activations and gradients at one site: (B, T, C) with prefix tokens, or (B, C, h, w) of a convolution.

    After `on_grid` always (B, C, h, w).
    """

    A: Tensor
    G: Tensor


@contextmanager
def tapped(sites: Sequence[Site]) -> Iterator[dict[int, Tensor]]:
    """Hooks on `sites` that fill the yielded dict, during the forward pass, with the tokens at each by its position.

    The graph begins at the first site that runs: what is before it records nothing, since the weights are constant
    and the tokens there become a leaf. The tower continues with a copy, so that an in-place ReLU cannot overwrite them.
    A forward pass of another thread at the same time passes through untouched.
    """
    tokens: dict[int, Tensor] = {}
    runs = [0] * len(sites)
    thread = threading.get_ident()

    def tap(position: int, value: Any) -> Any:
        name, run = sites[position].name, sites[position].run
        runs[position] += 1
        if runs[position] < run:
            return None
        if runs[position] > run:
            raise LayerError(f"layer {name!r} runs more than once in one forward pass: name one that runs once")
        if not torch.is_grad_enabled():
            raise LayerError(
                f"layer {name!r} runs under torch.no_grad() in the detector's forward pass, so the score has no"
                " gradient there: name one that runs outside, or take the no_grad out of the detector"
            )
        first = value[0] if isinstance(value, tuple) and value else value
        if not isinstance(first, Tensor):
            raise LayerError(f"layer {name!r} passes on {type(first).__name__}, not a tensor of tokens: name another")
        tokens[position] = first if first.requires_grad else first.detach().requires_grad_()
        passed_on = tokens[position].clone()
        return (passed_on, *value[1:]) if isinstance(value, tuple) else passed_on

    def input_hook(position: int) -> Callable[..., Any]:
        return lambda module, inputs: tap(position, inputs) if threading.get_ident() == thread else None

    def output_hook(position: int) -> Callable[..., Any]:
        return lambda module, inputs, output: tap(position, output) if threading.get_ident() == thread else None

    with ExitStack() as hooks:
        for position, site in enumerate(sites):
            if site.reads_input:
                handle = site.module.register_forward_pre_hook(input_hook(position))
            else:
                handle = site.module.register_forward_hook(output_hook(position))
            hooks.callback(handle.remove)
        yield tokens


def token_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    forward: Callable[[], Prediction],
    target: Target,
    label: Tensor | None = None,
) -> tuple[Prediction, list[str], list[Tokens]]:
    """Run `forward` once and differentiate its score once with respect to the tokens of all `sites`.

    Samples are independent, so the gradient of the batch's summed score is each image's own gradient.

    Returns:
        The prediction, the target's name per image, and activations and gradients per site, in the order of `sites`;
        all detached.

    Raises:
        LayerError: a site that does not run, or that the score does not depend on.
    """
    with frozen_for_explaining(model), tapped(sites) as tokens:
        prediction = forward()
        logits = prediction["cls"]
        weights, names = score_weights(logits.detach().float(), target, label)
        for position, site in enumerate(sites):
            if position not in tokens:
                raise LayerError(f"layer {site.name!r} does not run in the detector's forward pass: name another")
        activations = [tokens[position] for position in range(len(sites))]
        gradients = score_gradients(logits, weights, activations)
        detached = {key: value.detach() for key, value in prediction.items()}
    captured = []
    for site, A, G in zip(sites, activations, gradients):
        if G is None:
            raise LayerError(
                f"the score does not depend on layer {site.name!r} at all: name one that the head reads from"
            )
        captured.append(Tokens(A.detach(), G))
    return detached, names, captured


def score_gradients(logits: Tensor, weights: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """∂(Σ weights · logits)/∂tokens for each of `tokens`, None where the score does not depend on them.

    Logits and weights (B, 2). Gradients have the tokens' dtype, but are float32 for a float16 model.
    """
    if not logits.requires_grad:
        return [None] * len(tokens)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    score = (logits.to(dtype) * weights.to(dtype)).sum(dim=1)
    if any(tensor.dtype == torch.float16 for tensor in (logits, *tokens)):
        return _half_gradients(score, tokens)
    return torch.autograd.grad(score.sum(), list(tokens), allow_unused=True)


def _half_gradients(score: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """As float32. Each image has a scale of its own: what overflows in one must not coarsen the others' gradients."""
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


# ------------------------------------------------------------------------------------------------------- on the image


def on_grid(tokens: Mapping[str, Tokens], grid: Grid | None) -> dict[str, Tokens]:
    """Per layer (B, T, C) → (B, C, h, w): the prefix tokens (CLS) dropped, the patches in rows, as views.

    A convolution's (B, C, h, w) passes as it is. Raises LayerError where a layer's tokens are not those of `grid`.
    """
    return {layer: Tokens(_on_grid(A, grid, layer), _on_grid(G, grid, layer)) for layer, (A, G) in tokens.items()}


def _on_grid(tokens: Tensor, grid: Grid | None, layer: str) -> Tensor:
    if tokens.ndim == 4:
        return tokens
    if tokens.ndim != 3 or grid is None:
        raise LayerError(
            f"layer {layer!r} gives a tensor of shape {tuple(tokens.shape)}, which has no patch tokens:"
            " name an encoder block or a module inside one"
        )
    return without_prefix(tokens, grid, layer).transpose(1, 2).unflatten(2, (grid.rows, grid.columns))


def without_prefix(tokens: Tensor, grid: Grid, layer: str) -> Tensor:
    """(B, T, ...) → (B, rows · columns, ...), the patches alone. Raises LayerError for another number T."""
    before = tokens.shape[1] - grid.rows * grid.columns
    if before < 0 or grid.prefix not in (None, before):
        expected = f"{grid.rows}x{grid.columns} patches" + (f" and {grid.prefix} before them" if grid.prefix else "")
        raise LayerError(
            f"layer {layer!r} gives {tokens.shape[1]} tokens, but {expected} are expected: name an encoder block or a"
            " module inside one"
        )
    return tokens[:, before:]
