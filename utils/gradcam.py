"""The engine's face: `explain` for any detector, and `capture`, the one pass from which all maps follow.

`utils/cam/tokens.py` reads tokens and gradients, `utils/cam/methods.py` turns them into maps, and
`utils/cam/attention.py` does so from a block's attention. The model is left exactly as it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.cam.attention import ATTENTION_METHODS, AttentionPass, BlockProjection, attention_token_maps
from utils.cam.frozen import frozen_for_explaining
from utils.cam.layers import SITES, LayerError, find_sites
from utils.cam.maps import FUSED, LayerMaps, fused, layer_maps, refuse_non_finite, to_layer_maps, without_fused
from utils.cam.methods import DEFAULT_EPSILON, cam_method, check_method, is_attention_method
from utils.cam.targets import Target, wants_both
from utils.cam.tokens import Prediction, Tokens, token_gradients
from utils.cam.towers import Grid, family_of, find_tower
from utils.errors import InputError


@dataclass(frozen=True)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `target` names what each image's map explains ("fake", "real" or "margin"); `layers` maps the layer's name, as it
    was given, to its maps, in the order given.
    """

    prediction: Prediction
    target: list[str]
    layers: dict[str, LayerMaps]

    @property
    def logits(self) -> Tensor:
        """(B, 2): real, fake."""
        return self.prediction["cls"]


class LayerSite(NamedTuple):
    """Key of the tokens of one layer, named as the caller wrote it, at one site."""

    layer: str
    site: str


@dataclass(frozen=True)
class Capture:
    """What one pass has left. `prediction` and `target` as in `Explanation`; `maps` gives the rest."""

    prediction: Prediction
    target: list[str]
    layers: Sequence[str]
    activations: Mapping[LayerSite, Tokens]
    attention: AttentionPass
    projections: Mapping[BlockProjection, Tensor]
    output_gradients: Mapping[str, Tensor]  # block → ∂score/∂O of its attention
    grid: Grid | None
    size: tuple[int, int]

    def maps(self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON) -> dict[str, LayerMaps]:
        """The maps of every layer by one method at one site, both among those that the pass was made for.

        A method that reads attention has the same maps at every site.

        Raises:
            LayerError: a gradient is structurally zero, or the network has no patch tokens, which the method needs.
            NonFiniteMapError: a map is not finite.
        """
        if is_attention_method(method):
            if self.grid is None:
                raise LayerError(f"method {method!r} needs patch tokens, which this detector's network does not have")
            token_maps = attention_token_maps(
                ATTENTION_METHODS[method], self.attention, self.projections, self.output_gradients
            )
            found = to_layer_maps(token_maps, self.grid, self.size)
        else:
            tokens = {layer: self.activations[LayerSite(layer, site)] for layer in without_fused(self.layers)}
            found = layer_maps(tokens, cam_method(method, pp_epsilon), self.grid, self.size)
        if FUSED in self.layers:
            found[FUSED] = fused(list(found.values()), self.size)
        return {layer: found[layer] for layer in dict.fromkeys(self.layers)}

    def explanation(self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON) -> Explanation:
        """`maps` beside the prediction. Raises NonFiniteMapError for logits that are not finite, too.

        Where a logit is not finite its gradient may still be, but explains no decision.
        """
        maps = self.maps(method, site, pp_epsilon)
        refuse_non_finite(torch.isfinite(self.prediction["cls"]).all(dim=1), "the logits")
        return Explanation(self.prediction, self.target, maps)


def capture(
    model: nn.Module,
    tower: nn.Module,
    forward: Callable[[], Prediction],
    *,
    layers: Sequence[str],
    methods: Sequence[str],
    sites: Sequence[str],
    target: Target,
    label: Tensor | None = None,
    grid: Grid | None,
    size: tuple[int, int],
) -> Capture:
    """Run `forward` once and differentiate once, for all `methods` at all `sites` of all `layers`.

    Args:
        model: what `forward` runs; put into evaluation mode for the pass.
        tower: the part of it that layer names are relative to, of a family in `utils.cam.towers`.
        forward: returns a mapping with the logits (B, 2), real and fake, under "cls".
        layers: names of modules, and "fused"; see `utils.cam.layers.find_sites`.
        methods: some of `utils.cam.methods.METHOD_NAMES`.
        sites: some of `utils.cam.layers.SITES`.
        target: see `utils.cam.targets.score_weights`; not "both".
        label: (B,), for target "label".
        grid: of the patches on the images, None for a convolutional network.
        size: (H, W) of the normalised maps.

    Raises:
        InputError: an unknown method, site or target.
        LayerError: a layer that cannot be explained.
    """
    for method in methods:
        check_method(method)
    named, path = without_fused(layers), _path_of(tower, model)
    points = {}
    if not all(is_attention_method(method) for method in methods):
        for site in sites:
            points.update({LayerSite(point.name, site): point for point in find_sites(tower, named, site, path)})
    attention = AttentionPass.of(tower, named, methods, path)
    with attention.kept() as projections:
        prediction, names, tokens = token_gradients(
            model, [*points.values(), *attention.output_sites()], forward, target, label
        )
    activations = dict(zip(points, tokens))
    blocks = [block for block, _ in attention.differentiated]
    output_gradients = dict(zip(blocks, (pair.G for pair in tokens[len(points) :])))
    return Capture(prediction, names, layers, activations, attention, projections, output_gradients, grid, size)


def _path_of(tower: nn.Module, model: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is tower), "")


# --------------------------------------------------------------------------------------------------------- both classes


def explained_names(layers: Sequence[str], target: Target) -> list[str]:
    """The names under which the maps of `layers` come: twice, `<layer>_fake` and `<layer>_real`, for target "both"."""
    if not wants_both(target):
        return list(dict.fromkeys(layers))
    return [f"{layer}_{one_class}" for layer in dict.fromkeys(layers) for one_class in ("fake", "real")]


def explain_target(target: Target, explain_one: Callable[[Target], Explanation]) -> Explanation:
    """`explain_one(target)`; for target "both" one pass for each class, their maps named as by `explained_names`."""
    if not wants_both(target):
        return explain_one(target)
    fake, real = explain_one("fake"), explain_one("real")
    maps = [explanation.layers[layer] for layer in fake.layers for explanation in (fake, real)]
    layers = dict(zip(explained_names(list(fake.layers), target), maps))
    return Explanation(fake.prediction, ["both"] * len(fake.target), layers)


# --------------------------------------------------------------------------------------------------------- any detector


def explain(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] | None = None,
    method: str | None = None,
    target: Target = "fake",
    forward: Callable[[Tensor], Any] | None = None,
    site: str | None = None,
) -> Explanation:
    """Prediction and maps of one batch, for any detector with a network of a known family somewhere inside.

    Args:
        model: any module that gives two logits per image, real and fake: as a tensor (B, 2), as a mapping that holds
            one under "cls" or "logits", or as an object with `.logits`.
        images: (B, 3, H, W) floating point, normalised as the model wants them, on its device.
        layers: module names, relative to the model or to the network inside; a block's name means what the block reads,
            at `site`; "fused" means the mean of the other layers' normalised maps. None: the last block, or the last
            module of a convolutional network that returns maps, which a forward pass of its own has to find.
        method: one of `utils.cam.methods.METHOD_NAMES`; None means "gradcam".
        target: one of `utils.cam.targets.TARGETS` but "label", or one entry per image (such a name, or a class 0 / 1).
            "both" makes two passes and gives every layer twice, as `<layer>_fake` and `<layer>_real`.
        forward: runs the model on `images`, where `model(images)` does not.
        site: one of `utils.cam.layers.SITES`; None means the first.

    Raises:
        InputError: an unusable argument, a network of no known family, or logits of another shape.
        LayerError: a layer that cannot be explained.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    check_images(images, "images")
    tower = find_tower(model)
    family, size = family_of(tower), (images.shape[2], images.shape[3])
    method_name, site_name = method or "gradcam", site or SITES[0]

    def predict() -> Prediction:
        logits = _logits((forward or model)(images), len(images))
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1]}

    if layers is None:
        with frozen_for_explaining(model):
            names: Sequence[str] = [family.default_layer(tower, predict)]
    else:
        names = layers

    def explain_one(one_target: Target) -> Explanation:
        captured = capture(
            model,
            tower,
            predict,
            layers=names,
            methods=[method_name],
            sites=[site_name],
            target=one_target,
            grid=family.grid(tower, *size),
            size=size,
        )
        return captured.explanation(method_name, site_name)

    return explain_target(target, explain_one)


def check_images(images: Any, what: str) -> None:
    """Raises InputError, which calls them `what`, for anything but a batch of finite images (B, 3, H, W)."""
    if not isinstance(images, Tensor):
        raise InputError(f"{what} is {type(images).__name__}: expected a tensor of shape (B, 3, H, W)")
    if images.ndim == 5:
        raise InputError(
            f"{what} has shape {tuple(images.shape)}: clips of frames are not explained as such;"
            " give one batch of frames (B, 3, H, W), for example images.flatten(0, 1)"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            f"{what} has shape {tuple(images.shape)} and type {images.dtype}:"
            " expected normalised floating point images of shape (B, 3, H, W)"
        )
    if images.shape[0] == 0:
        raise InputError(f"{what} is an empty batch: give at least one image")
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise InputError(f"{what} holds NaN or infinite pixels in image(s) {bad}: check how they were normalised")


def _logits(output: Any, count: int) -> Tensor:
    """The logits (B, 2) in what a model has returned. Raises InputError."""
    logits = output
    if isinstance(output, Mapping):
        logits = output["cls"] if "cls" in output else output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        held = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise InputError(
            f"the model returned {type(output).__name__}{held}: expected logits of shape ({count}, 2) as a tensor,"
            " under 'cls' or 'logits' of a mapping, or as .logits; or give forward, a function from images to logits"
        )
    if tuple(logits.shape) != (count, 2):
        raise InputError(
            f"the model's logits have shape {tuple(logits.shape)}: expected ({count}, 2), real and fake; heads with one"
            " logit or more than two classes are not supported: give forward, a function from images to two logits"
        )
    return logits
