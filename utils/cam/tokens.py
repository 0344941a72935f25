"""Tokens of named encoder layers and the gradients of a score with respect to them, by one forward and backward pass.

The model is left exactly as it was found: hooks, `training` flags, `requires_grad`, `.grad` and the random state (see
`frozen_for_explaining`).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.cam.layers import LayerError, Site
from utils.cam.targets import Target, score_weights
from utils.errors import InputError

# Patch gradients of a logit are about 1e-5, below what float16 resolves: there the score is scaled before backward, by
# the largest of these factors with which the picture's gradients do not overflow. Powers of two: they round nothing.
HALF_SCORE_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0, 2.0**-5, 2.0**-10)


Prediction = Dict[str, Tensor]


class Tokens(NamedTuple):
    """Activations and gradients at one site, still with prefix tokens: (B, T, C), or (B, C, h, w) of a convolution."""

    A: Tensor
    G: Tensor


# Two explanations at once would see each other's frozen weights and global random state: one after the other, also of
# different detectors. What is to be put back is noted inside, where no other explanation has changed it.
_one_at_a_time = threading.RLock()


@contextmanager
def frozen_for_explaining(model: nn.Module) -> Iterator[None]:
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
    with frozen_for_explaining(model), tapped(sites) as tokens:
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
    score = (logits.to(map_dtype(logits)) * weights.to(map_dtype(logits))).sum(dim=1)
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


def map_dtype(tokens: Tensor) -> torch.dtype:
    """Map arithmetic is float32, or float64 for a float64 model."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32
