"""Tokens at named points of a tower and the gradients of a score with respect to them, from one pass each way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .checks import Checks
from .completeness import Completeness, SelfTest, completeness_of, has_bias, scaled_biases
from .frozen import frozen_for_explaining, replaced_forward
from .heads import Head, HeadReader, Prediction, Target, score_weights
from .hooks import ClassTokenPath, Joined, Tap, in_order, is_quick_gelu, quick_gelu, tapped
from .layers import LayerError, Site
from .towers import Grid
from .towers.attention import HeldLater
from .towers.channel_axis import ChannelAxes
from .towers.family import SAY_WHERE
from .towers.tower import Tower

# Patch gradients of a logit are about 1e-5, too small for float16. The score is therefore scaled before backward, by
# the largest of these factors that does not make the image's gradients overflow. Powers of two cause no rounding.
HALF_SCORE_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0, 2.0**-5, 2.0**-10)
STACKED = 2**26  # most numbers in layers whose maps are computed together
K = TypeVar("K", str, tuple[str, ...])  # a layer, or stacked layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Differentiated:
    """The results of one forward pass, all detached."""

    prediction: Prediction  # as the head reader reads it
    head: Head
    target: list[str]  # its name for each image
    tokens: list[Tokens]  # per site, in the given order
    completeness: list[Completeness]  # per site of the self-test
    balanced: list[Tokens] | None  # like `tokens`, by the balanced rule, if the plan asks for both
    more_tokens: Tensor | None  # bool: whether the score depends on more of the last block than a `ClassTokenPath` has


class Tokens(NamedTuple):
    """Activations and gradients at a site: (B, T, C) with prefix tokens, or (B, C, h, w), in any tower.

    After `on_grid`, they are always (B, C, h, w).
    """

    A: Tensor
    G: Tensor


class Question(NamedTuple):
    """What to run, how to read its output, and which score to explain."""

    forward: Callable[[], Any]  # returns logits that `head` reads
    head: HeadReader
    target: Target
    label: Tensor | None = None  # (B,), for target "label"


InOrder = Callable[[Sequence[Tap], Sequence[Tensor], int], list[tuple[Tensor, Tensor]]]


class PassPlan(NamedTuple):
    """How to run the forward and backward pass."""

    path: ClassTokenPath | None = None  # the last block for its class token alone
    self_test: SelfTest | None = None  # differentiates a second time, by secants of the activations
    constants: AbstractContextManager[Any] = nullcontext()  # the backward rule's context around the forward pass
    products: Callable[[], AbstractContextManager[Any]] = nullcontext  # the precision's, around the backward pass
    held: HeldLater | None = None  # differentiates a second time, by the balanced rule
    in_order: InOrder = in_order  # how the taps' tensors become rows of what is explained


def token_gradients(
    tower: Tower, sites: Sequence[Site], question: Question, plan: PassPlan, checks: Checks
) -> Differentiated:
    """Run the model once and differentiate its score once with respect to the tokens of all `sites`.

    Images are independent, so the gradient of the summed score contains each image's own gradient. `checks`: as for
    `score_weights`.

    Raises:
        LayerError: a site does not run, or the score does not depend on it.
        InputError: the model returned no logits.
    """
    path, self_test = plan.path, plan.self_test
    tested = self_test.sites if self_test else []
    axes = ChannelAxes() if any(site.may_be_4d for site in sites) else None
    gelus = tower.modules_that(is_quick_gelu)
    with ExitStack() as hooks:
        hooks.enter_context(frozen_for_explaining(tower.model, tower.structure))
        hooks.enter_context(replaced_forward(gelus, quick_gelu))
        taps = hooks.enter_context(tapped([*sites, *tested], axes, path))
        scales = hooks.enter_context(scaled_biases(tower.modules_that(has_bias), taps)) if self_test else {}
        with axes or nullcontext(), path.hooked() if path else nullcontext(), plan.constants:
            output = question.forward()
        prediction, kind = question.head.read(output)
        logits = prediction["cls"]
        exact = torch.promote_types(logits.dtype, torch.float32)
        weights, names = score_weights(logits.detach().to(exact), question.target, question.label, kind, checks)
        for position, site in enumerate([*sites, *tested]):
            if position not in taps:
                raise LayerError(f"layer {site.name!r} does not run in the detector's forward pass: name another")
        read = [taps[position] for position in range(len(sites))]
        joined = path.joined if path else None
        leaves = [*(tap.tokens for tap in read), *([joined.rest] if joined else [])]
        with plan.products():
            found = score_gradients(logits, weights, leaves, again=self_test is not None or plan.held is not None)
            again: Sequence[Tensor | None] = []
            if plan.held is not None:
                plan.held.now = True
                again = score_gradients(logits, weights, leaves, again=self_test is not None)
        more_tokens = _more_than_one(joined, found[-1]) if joined else None
        score = logits, weights
        completeness = _completeness(self_test, score, taps, len(sites), scales) if self_test else []
        detached = {key: value.detach() for key, value in prediction.items()}
    order = len(logits), plan.in_order
    by_rule = [_tokens(read, found, *order), _tokens(read, again, *order) if plan.held else None]
    return Differentiated(
        prediction=detached,
        head=kind,
        target=names,
        tokens=by_rule[0] or [],
        balanced=by_rule[1],
        completeness=completeness,
        more_tokens=more_tokens,
    )


def _tokens(read: Sequence[Tap], found: Sequence[Tensor | None], images: int, in_order: InOrder) -> list[Tokens]:
    """Return each tap's tokens and gradient. Raises LayerError if the score does not depend on them."""
    gradients = []
    for tap, G in zip(read, found, strict=False):  # behind the taps' come others
        if G is None:
            raise LayerError(
                f"the score does not depend on layer {tap.site.name!r} at all: name one that the head reads from"
            )
        gradients.append(G)
    return list(map(Tokens._make, in_order(read, gradients, images)))


def _completeness(
    test: SelfTest, score: tuple[Tensor, Tensor], taps: Mapping[int, Tap], before: int, scales: Mapping[int, Tensor]
) -> list[Completeness]:
    """Test each site by a second backward pass. `score`: logits and their weights; `before`: the other sites."""
    logits, weights = score
    test.activations.by_secant = True
    order = {position: rank for rank, position in enumerate(taps)}
    tested = [taps[position] for position in range(before, before + len(test.sites))]
    found = score_gradients(logits, weights, [*(tap.tokens for tap in tested), *scales.values()])
    by_leaf = zip(scales, found[len(tested) :], strict=True)
    terms = {read: term for read, term in by_leaf if term is not None}
    total = (logits.detach().double() * weights).sum(dim=1)
    return [
        completeness_of(*in_order([tap], [G], len(logits))[0], order[before + i], terms, total)
        for i, (tap, G) in enumerate(zip(tested, found[: len(tested)], strict=True))
        if G is not None
    ]


def _more_than_one(joined: Joined, of_rest: Tensor | None) -> Tensor:
    """Return a bool tensor: other tokens have a gradient, or the class token's own run gave another value.

    NaN counts as neither: an image with NaN says nothing about the tower.
    """
    return joined.differs if of_rest is None else joined.differs | of_rest.abs().gt(0).any()


def score_gradients(
    logits: Tensor, weights: Tensor, tokens: Sequence[Tensor], again: bool = False
) -> Sequence[Tensor | None]:
    """Return ∂(Σ weights · logits)/∂tokens for each of `tokens`; None if the score does not depend on them.

    `again`: keep the graph for another call. Logits and weights: (B, K). Gradients have the shape and dtype of the
    tokens, but float32 for a float16 model.
    """
    if not logits.requires_grad or not tokens:  # a method may read no gradient
        return [None] * len(tokens)
    if any(tensor.dtype == torch.float16 for tensor in (logits, *tokens)):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return _half_gradients((logits.to(dtype) * weights.to(dtype)).sum(dim=1), tokens)
    return torch.autograd.grad(logits, tokens, weights.to(logits.dtype), retain_graph=again, allow_unused=True)


def _half_gradients(score: Tensor, tokens: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return float32 gradients, scaled per image, so that overflow in one does not coarsen the others."""
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


def stacked(tokens: Mapping[str, Tokens], alike: Mapping[str, object]) -> dict[tuple[str, ...], Tokens]:
    """Stack layers with equal shapes and equal `alike` values into one batch (L · B, ...).

    The next steps then run once for all of them: fewer operations on more numbers.
    """
    groups: dict[Any, list[str]] = {}
    for layer, (A, G) in tokens.items():
        key: Any = (A.shape, A.dtype, A.device, G.dtype, alike[layer])
        full = max(1, STACKED // A.numel())
        while len(groups.get(key, ())) == full:
            key = (key,)
        groups.setdefault(key, []).append(layer)
    return {tuple(some): _as_one([tokens[layer] for layer in some]) for some in groups.values()}


def _as_one(several: Sequence[Tokens]) -> Tokens:
    return several[0] if len(several) == 1 else Tokens(*map(torch.cat, zip(*several, strict=True)))


def on_grid(tokens: Mapping[K, Tokens], grid: Grid | None) -> dict[K, Tokens]:
    """Return each layer's tokens (B, T, C) as (B, C, h, w) views, without prefix tokens (CLS).

    (B, C, h, w) of a convolution is returned unchanged. Raises LayerError if a layer's tokens do not match `grid`.
    """
    return {layer: _on_grid(both, grid, layer) for layer, both in tokens.items()}


def _on_grid(tokens: Tokens, grid: Grid | None, layer: str | tuple[str, ...]) -> Tokens:
    shape, name = tuple(tokens.A.shape), layer if isinstance(layer, str) else layer[0]
    if len(shape) == 4:
        return tokens
    if len(shape) != 3 or grid is None:
        raise LayerError(
            f"layer {name!r} gives a tensor of shape {shape}, which has no patch tokens:"
            " name an encoder block or a module inside one"
        )
    grid = grid.of_tokens(shape[1]) if grid.halvings else grid
    patches = (without_prefix(each, grid, name).transpose(1, 2) for each in tokens)
    return Tokens(*(each.unflatten(2, (grid.rows, grid.columns)) for each in patches))


def without_prefix(tokens: Tensor, grid: Grid, layer: str) -> Tensor:
    """Return only the patches, (B, rows · columns, ...), of (B, T, ...). Raises LayerError if T does not match."""
    patches = grid.rows * grid.columns
    before = tokens.shape[1] - patches - grid.suffix
    if before < 0 or grid.prefix not in (None, before):
        expected = f"{grid.rows}x{grid.columns} patches" + (f" and {grid.prefix} before them" if grid.prefix else "")
        expected += f" and {grid.suffix} after them" if grid.suffix else ""
        raise LayerError(
            f"layer {layer!r} gives {tokens.shape[1]} tokens, but {expected} are expected: name an encoder block or a"
            f" module inside one; {SAY_WHERE}"
        )
    return tokens[:, before : before + patches]


def reach(tokens: Mapping[K, Tokens], grid: Grid | None) -> dict[K, Tensor]:
    """Return for each layer whether any patch and whether any token has a gradient, (2, B) bool.

    `tokens` are those given to `on_grid`, with prefix tokens.
    """
    found = {}
    for layer, (_, G) in tokens.items():
        by_token = G.flatten(2).any(dim=2)
        touched = of_patches = by_token.any(dim=1)
        if G.ndim == 3 and grid is not None:
            of_stage = grid.of_tokens(G.shape[1]) if grid.halvings else grid
            of_patches = without_prefix(by_token, of_stage, str(layer)).any(dim=1)
        found[layer] = torch.stack([of_patches, touched])
    return found


def by_layer(stacks: Mapping[tuple[str, ...], Tensor], axis: int = 0) -> dict[str, Tensor]:
    """Split a result of stacked layers by layer."""
    return {
        layer: part
        for layers, one in stacks.items()
        for layer, part in zip(layers, one.chunk(len(layers), dim=axis) if len(layers) > 1 else [one], strict=True)
    }
