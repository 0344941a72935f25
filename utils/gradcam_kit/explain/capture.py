"""One forward and one backward pass, from which the maps of all methods at all sites of all layers follow.

`engine/tokens.py` reads tokens and gradients, `engine/methods.py` turns them into maps, and
`engine/attention.py` does so from a block's attention. The model is left exactly as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base.allowed import BACKWARDS
from ..engine.attention import ATTENTION_METHODS, AttentionPass, BlockProjection, attention_token_maps
from ..engine.backward import PLAIN, Activations, backward_rules
from ..engine.checks import Checks, read_at_once
from ..engine.completeness import Completeness, SelfTest
from ..engine.fast.class_token_path import (
    ClassTokenPath,
    NotOneToken,
    class_token_path,
    reads_more_tokens,
)
from ..engine.heads import ANY_MODEL, Head, HeadReader, Prediction
from ..engine.layers import (
    FUSED,
    SUM,
    LayerError,
    block_names,
    find_sites,
    name_in_tower,
    named_layers,
    summed_blocks,
)
from ..engine.maps import Canvas, LayerMaps, in_order, layer_maps, refuse_non_finite, to_layer_maps
from ..engine.methods import DEFAULT_EPSILON, check_methods, leftover, signed_maps
from ..engine.spatial_layers import is_shareable, last_run
from ..engine.targets import Target
from ..engine.tokens import Differentiated, Tokens, on_grid, token_gradients
from ..engine.towers import Grid
from .explanation import Explanation
from .precision import FP32, check_backward_precision, matrix_products_in, resolved_precision


class LayerSite(NamedTuple):
    """Key of the tokens of one layer, named as the caller wrote it, at one site."""

    layer: str
    site: str


@dataclass(frozen=True)
class Capture:
    """What one pass has left. `prediction`, `head` and `target` as in `Explanation`; `maps` gives the rest."""

    prediction: Prediction
    head: Head
    target: list[str]
    layers: Sequence[str]
    summed: Sequence[str]  # the blocks that layer SUM adds
    backward: str
    activations: Mapping[LayerSite, Tokens]
    norm_epsilons: Mapping[LayerSite, float]  # ε of the norm that reads them, 0 where it is not known
    attention: AttentionPass
    projections: Mapping[BlockProjection, Tensor]
    output_gradients: Mapping[str, Tensor]  # block → ∂score/∂O of its attention
    completeness: Mapping[str, Completeness]  # of layers that are blocks, where it was asked for
    grid: Grid | None
    size: tuple[int, int]

    def maps(
        self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON, checks: Checks | None = None
    ) -> dict[str, LayerMaps]:
        """The maps of every layer by one method at one site, both among those that the pass was made for.

        A method that reads attention has the same maps at every site. `checks`: where errors are left that are found on
        the device; None: they are raised here.

        Raises:
            LayerError: a gradient is structurally zero, or the network has no patch tokens, which the method needs.
            NonFiniteMapError: a map is not finite.
        """
        canvas = Canvas.of(self.size, self.grid)
        if method in ATTENTION_METHODS:
            if self.grid is None:
                raise LayerError(f"method {method!r} needs patch tokens, which this detector's network does not have")
            reading = ATTENTION_METHODS[method]
            token_maps = attention_token_maps(reading, self.attention, self.projections, self.output_gradients)
            patches = self.grid.rows * self.grid.columns
            if reading.needs_class_token and any(pair.raw.shape[1] == patches for pair in token_maps.values()):
                raise LayerError(f"method {method!r} reads the class token, which this tower does not have")
            found = to_layer_maps(token_maps, self.grid, canvas, reading.sum_of or "", self.parts(), checks)
        else:
            tokens = {key.layer: pair for key, pair in self.activations.items() if key.site == site}
            on_image = on_grid(tokens, self.grid)
            signed, leftovers = signed_maps(method, on_image, pp_epsilon), None
            if method == "hirescam":  # the one whose sum a LayerNorm can make 0
                epsilons = {layer: self.norm_epsilons[LayerSite(layer, site)] for layer in on_image}
                leftovers = {layer: leftover(A, G, epsilons[layer]) for layer, (A, G) in on_image.items()}
            found = layer_maps(signed, on_image, tokens, canvas, self.parts(), leftovers, checks)
        return in_order(found, self.layers, canvas)

    def parts(self) -> dict[str, Sequence[str]]:
        """The captured layers that each layer's maps are made of: itself, or for SUM all blocks."""
        return {layer: self.summed if layer == SUM else [layer] for layer in self.layers if layer != FUSED}

    def explanation(
        self, method: str, site: str, images: Tensor, pp_epsilon: float = DEFAULT_EPSILON, checks: Checks | None = None
    ) -> Explanation:
        """`maps` beside the prediction of `images`, those of the pass. Raises NonFiniteMapError for the logits, too.

        Where a logit is not finite its gradient may still be, but explains no decision.
        """
        maps = self.maps(method, site, pp_epsilon, checks)
        refuse_non_finite(torch.isfinite(self.prediction["cls"]).all(dim=1), "the logits", checks)
        where = "output" if self.grid is None else site
        return Explanation(
            self.prediction, self.head, self.target, maps, method, where, self.backward, self.completeness, images
        )


def capture(
    model: nn.Module,
    tower: nn.Module,
    forward: Callable[[], Any],
    *,
    layers: Sequence[str],
    methods: Sequence[str],
    sites: Sequence[str],
    target: Target,
    label: Tensor | None = None,
    grid: Grid | None,
    size: tuple[int, int],
    backward: str = BACKWARDS[0],
    completeness: bool = False,
    head: HeadReader = ANY_MODEL,
    backward_precision: str = FP32,
    checks: Checks | None = None,
) -> Capture:
    """Run `forward` once and differentiate once, for all `methods` at all `sites` of all `layers`.

    Args:
        model: what `forward` runs; put into evaluation mode for the pass.
        tower: the part of it that layer names are relative to, of a family in `engine.towers`.
        forward: returns the logits, as `head` can read them.
        layers: names of modules, "fused" and "sum"; see `engine.layers.find_sites`.
        methods: some of `engine.methods.METHOD_NAMES`.
        sites: some of `engine.layers.SITES`.
        target: see `engine.targets.score_weights`; not "both".
        label: (B,), for target "label".
        grid: of the patches on the images, None for a convolutional network.
        size: (H, W) of the normalised maps.
        backward: one of `engine.backward.BACKWARDS`.
        completeness: with "balanced", whether to test if the shares of each block add up, by a second backward pass.
        head: says which detector it is and what its classes are.
        backward_precision: one of `base.allowed.BACKWARD_PRECISIONS`, of the matrix products of the backward pass. The
            test of completeness is always float32's.
        checks: where what the device has to say first is left, for the caller to read; None: it is read here. They
            raise NotOneToken where the pass has to be made once more, by the same call.

    Raises:
        InputError: an unknown method, site, target, precision or backward pass, a backward pass that this tower does
            not have, or what `forward` returned holds no logits.
        LayerError: a layer that cannot be explained.
    """
    path = next((name for name, module in model.named_modules() if module is tower), "").replace("._orig_mod", "")
    check_methods(methods)
    check_backward_precision(backward_precision)
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    products = partial(matrix_products_in, resolved_precision(backward_precision, device))
    named, summed = named_layers(layers), summed_blocks(tower, layers)
    _refuse_sums(methods if summed else [])
    captured = list(dict.fromkeys([*named, *summed]))
    points = {}
    if not set(methods) <= set(ATTENTION_METHODS):
        for site in sites:
            for point in find_sites(tower, captured, site, path):
                if not point.reads_input and is_shareable(point.module):
                    run = last_run(tower, name_in_tower(tower, point.name, path), model, forward)
                    point = point._replace(run=run)
                points[LayerSite(point.name, site)] = point
    attention = AttentionPass.of(tower, captured, methods, path)
    read = [*points.values(), *attention.output_sites()]
    blocks_named = [layer for layer in captured if name_in_tower(tower, layer, path) in block_names(tower)]
    activations = Activations()
    self_test = None
    if completeness and backward != PLAIN:
        self_test = SelfTest(find_sites(tower, blocks_named, "residual", path), activations)

    def one_pass(path: ClassTokenPath | None) -> tuple[Differentiated, Mapping[BlockProjection, Tensor]]:
        rules = backward_rules(model, tower, backward, activations if self_test else None)
        with attention.kept() as projections, rules as constants, read_at_once(checks) as asked:
            found = token_gradients(
                model, read, forward, target, label, self_test, head, path, constants, products, asked
            )
            if found.more_tokens is not None:
                asked.add(found.more_tokens, partial(_refuse_more_tokens, tower))
            return found, projections

    asked = [(site.module, site.reads_input) for site in (*read, *(self_test.sites if self_test else ()))]
    try:
        found, projections = one_pass(None if attention.read else class_token_path(tower, asked, backward != PLAIN))
    except NotOneToken:
        reads_more_tokens.add(tower)
        found, projections = one_pass(None)
    output_gradients = attention.output_gradients([pair.G for pair in found.tokens[len(points) :]])
    complete = dict(zip(blocks_named, found.completeness, strict=True)) if self_test else {}
    if summed and complete:
        complete[SUM] = Completeness.worst([complete[block] for block in summed])
    return Capture(
        prediction=found.prediction,
        head=found.head,
        target=found.target,
        layers=layers,
        summed=summed,
        backward=backward,
        activations=dict(zip(points, found.tokens[: len(points)], strict=True)),
        norm_epsilons={key: point.norm_epsilon for key, point in points.items()},
        attention=attention,
        projections=projections,
        output_gradients=output_gradients,
        completeness={layer: complete[layer] for layer in layers if layer in complete},
        grid=grid,
        size=size,
    )


def _refuse_more_tokens(tower: nn.Module, more_tokens: Tensor) -> None:
    if more_tokens:
        reads_more_tokens.add(tower)
        raise NotOneToken


def _refuse_sums(methods: Sequence[str]) -> None:
    """Raises LayerError for methods whose maps do not add over blocks."""
    for method in methods:
        if method in ATTENTION_METHODS and ATTENTION_METHODS[method].sum_of is None:
            raise LayerError(
                f"method {method!r} has no maps to add for layer {SUM!r}: its map of a block follows from all blocks"
                " before it already; name the last block",
                "layers",
            )
