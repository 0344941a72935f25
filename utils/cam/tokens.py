"""Tokens at named points of a tower and the gradients of a score with respect to them, from one pass each way."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.cam.completeness import Completeness, SelfTest, completeness_of, scaled_biases
from utils.cam.frozen import frozen_for_explaining
from utils.cam.layers import LayerError, Site
from utils.cam.targets import Target, score_weights
from utils.cam.towers import Grid

# Patch gradients of a logit are about 1e-5, below what float16 resolves: there the score is scaled before backward, by
# the largest of these factors with which the image's gradients do not overflow. Powers of two: they round nothing.
HALF_SCORE_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0, 2.0**-5, 2.0**-10)


Prediction = Dict[str, Tensor]


class Differentiated(NamedTuple):
    """What one pass each way gives, all detached."""

    prediction: Prediction
    target: list[str]  # its name for each image
    tokens: list[Tokens]  # per site, in the order given
    completeness: list[Completeness]  # per site of the self-test


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
    thread = threading.get_ident()

    def tap(position: int, value: Any) -> Any:
        name = sites[position].name
        if position in tokens:
            raise LayerError(f"layer {name!r} runs more than once in one forward pass: name one that runs once")
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
    self_test: SelfTest | None = None,
) -> Differentiated:
    """Run `forward` once and differentiate its score once with respect to the tokens of all `sites`.

    Samples are independent, so the gradient of the batch's summed score is each image's own gradient. A `self_test`
    differentiates a second time, by secants of the activations.

    Raises:
        LayerError: a site that does not run, or that the score does not depend on.
    """
    tested = self_test.sites if self_test else []
    with ExitStack() as hooks:
        hooks.enter_context(frozen_for_explaining(model))
        tokens = hooks.enter_context(tapped([*sites, *tested]))
        scales = hooks.enter_context(scaled_biases(model, tokens)) if self_test else {}
        prediction = forward()
        logits = prediction["cls"]
        weights, names = score_weights(logits.detach().float(), target, label)
        for position, site in enumerate([*sites, *tested]):
            if position not in tokens:
                raise LayerError(f"layer {site.name!r} does not run in the detector's forward pass: name another")
        activations = [tokens[position] for position in range(len(sites))]
        gradients = score_gradients(logits, weights, activations, again=self_test is not None)
        completeness = []
        if self_test:
            self_test.activations.by_secant = True
            order = {position: rank for rank, position in enumerate(tokens)}
            positions = range(len(sites), len(sites) + len(tested))
            shares = [tokens[position] for position in positions]
            found = score_gradients(logits, weights, [*shares, *scales.values()])
            by_leaf = zip(scales, found[len(shares) :])
            terms = {read: term for read, term in by_leaf if term is not None}
            score = (logits.detach().double() * weights).sum(dim=1)
            for position, A, G in zip(positions, shares, found):
                if G is not None:
                    completeness.append(completeness_of(A.detach(), G, order[position], terms, score))
        detached = {key: value.detach() for key, value in prediction.items()}
    captured = []
    for site, A, G in zip(sites, activations, gradients):
        if G is None:
            raise LayerError(
                f"the score does not depend on layer {site.name!r} at all: name one that the head reads from"
            )
        captured.append(Tokens(A.detach(), G))
    return Differentiated(detached, names, captured, completeness)


def score_gradients(
    logits: Tensor, weights: Tensor, tokens: Sequence[Tensor], again: bool = False
) -> Sequence[Tensor | None]:
    """∂(Σ weights · logits)/∂tokens for each of `tokens`, None where the score does not depend on them.

    `again`: the graph is kept, for another call.
    Logits and weights (B, 2). Gradients have the tokens' dtype, but are float32 for a float16 model.
    """
    if not logits.requires_grad:
        return [None] * len(tokens)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    score = (logits.to(dtype) * weights.to(dtype)).sum(dim=1)
    if any(tensor.dtype == torch.float16 for tensor in (logits, *tokens)):
        return _half_gradients(score, tokens)
    return torch.autograd.grad(score.sum(), list(tokens), retain_graph=again, allow_unused=True)


def _half_gradients(score: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """As float32. Each image has a scale of its own: what overflows in one must not coarsen the others' gradients."""
    scale = torch.full_like(score, HALF_SCORE_SCALES[0])
    for lower in (*HALF_SCORE_SCALES[1:], None):
        gradients = torch.autograd.grad((score * scale).sum(), list(tokens), allow_unused=True, retain_graph=True)
        reached = [G for G in gradients if G is not None]
        finite = [torch.isfinite(G).reshape(len(G), -1).all(dim=1) for G in reached]
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
