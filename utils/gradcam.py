"""The engine's face: `explain` for any detector, and `capture`, the one pass from which all maps follow.

`utils/cam/tokens.py` reads tokens and gradients, `utils/cam/methods.py` turns them into maps, and
`utils/cam/attention.py` does so from a block's attention. The model is left exactly as it was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from utils.allowed import AUTO, BACKWARDS, DEFAULT_IMAGES, SITES
from utils.cam.attention import ATTENTION_METHODS, AttentionPass, BlockProjection, attention_token_maps
from utils.cam.backward import Activations, backward_rules
from utils.cam.completeness import Completeness, SelfTest
from utils.cam.frozen import frozen_for_explaining
from utils.cam.heads import ANY_MODEL, Head, HeadReader, Prediction, named_classes
from utils.cam.layers import (
    FUSED,
    SUM,
    LayerError,
    as_names,
    block_names,
    find_sites,
    name_in_tower,
    named_layers,
    summed_blocks,
)
from utils.cam.maps import Canvas, LayerMaps, in_order, layer_maps, refuse_non_finite, to_layer_maps
from utils.cam.methods import DEFAULT_EPSILON, check_methods, leftover, signed_maps
from utils.cam.spatial_layers import is_shareable, last_run
from utils.cam.targets import Target
from utils.cam.tokens import Differentiated, NotOneToken, Tokens, on_grid, token_gradients
from utils.cam.towers import Grid, family_of, find_tower, unwrapped
from utils.cam.towers.class_token_path import ClassTokenPath, class_token_path, reads_more_tokens
from utils.choice.candidates import NO_MAPS, Named, map_layers, shortlist
from utils.choice.choosing import TriedDetector, choose_map, in_batches, trial_images
from utils.choice.verdict import Choice
from utils.errors import InputError


@dataclass(frozen=True)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `head` says what its logits mean. `target` names what each image's map explains ("fake", "real", "margin" or the
    name of a class); `layers` maps the layer's name, as it
    was given, to its maps, in the order given. `site` is where a block's name was read; "output" in a network without
    patch tokens, of which every module is read there. `backward` is what the gradient took for constant; with
    "balanced", `completeness` says of each layer that is a block, and of "sum", whether its shares add up. `choice`:
    how the map was chosen, where this call chose it.
    """

    prediction: Prediction
    head: Head
    target: list[str]
    layers: dict[str, LayerMaps]
    method: str
    site: str
    backward: str
    completeness: Mapping[str, Completeness]
    choice: Choice | None = None

    @property
    def logits(self) -> Tensor:
        """(B, K): those of the detector; with two, real and fake."""
        return self.prediction["cls"]

    @property
    def real_and_fake(self) -> Tensor:
        """(B, 2): the scores for real and for fake, whatever the head; with two logits the logits themselves."""
        return self.head.real_and_fake(self.logits)


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

    def maps(self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON) -> dict[str, LayerMaps]:
        """The maps of every layer by one method at one site, both among those that the pass was made for.

        A method that reads attention has the same maps at every site.

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
            found = to_layer_maps(token_maps, self.grid, canvas, reading.sum_of or "", self.parts())
        else:
            tokens = {key.layer: pair for key, pair in self.activations.items() if key.site == site}
            on_image = on_grid(tokens, self.grid)
            signed, leftovers = signed_maps(method, on_image, pp_epsilon), None
            if method == "hirescam":  # the one whose sum a LayerNorm can make 0
                epsilons = {layer: self.norm_epsilons[LayerSite(layer, site)] for layer in on_image}
                leftovers = {layer: leftover(A, G, epsilons[layer]) for layer, (A, G) in on_image.items()}
            found = layer_maps(signed, on_image, tokens, canvas, self.parts(), leftovers)
        return in_order(found, self.layers, canvas)

    def parts(self) -> dict[str, Sequence[str]]:
        """The captured layers that each layer's maps are made of: itself, or for SUM all blocks."""
        return {layer: self.summed if layer == SUM else [layer] for layer in self.layers if layer != FUSED}

    def explanation(self, method: str, site: str, pp_epsilon: float = DEFAULT_EPSILON) -> Explanation:
        """`maps` beside the prediction. Raises NonFiniteMapError for logits that are not finite, too.

        Where a logit is not finite its gradient may still be, but explains no decision.
        """
        maps = self.maps(method, site, pp_epsilon)
        refuse_non_finite(torch.isfinite(self.prediction["cls"]).all(dim=1), "the logits")
        where = "output" if self.grid is None else site
        return Explanation(
            self.prediction, self.head, self.target, maps, method, where, self.backward, self.completeness
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
) -> Capture:
    """Run `forward` once and differentiate once, for all `methods` at all `sites` of all `layers`.

    Args:
        model: what `forward` runs; put into evaluation mode for the pass.
        tower: the part of it that layer names are relative to, of a family in `utils.cam.towers`.
        forward: returns the logits, as `head` can read them.
        layers: names of modules, "fused" and "sum"; see `utils.cam.layers.find_sites`.
        methods: some of `utils.cam.methods.METHOD_NAMES`.
        sites: some of `utils.cam.layers.SITES`.
        target: see `utils.cam.targets.score_weights`; not "both".
        label: (B,), for target "label".
        grid: of the patches on the images, None for a convolutional network.
        size: (H, W) of the normalised maps.
        backward: one of `utils.cam.backward.BACKWARDS`.
        completeness: with "balanced", whether to test if the shares of each block add up, by a second backward pass.
        head: says which detector it is and what its classes are.

    Raises:
        InputError: an unknown method, site, target or backward pass, a backward pass that this tower does not have, or
            what `forward` returned holds no logits.
        LayerError: a layer that cannot be explained.
    """
    path = next((name for name, module in model.named_modules() if module is tower), "").replace("._orig_mod", "")
    check_methods(methods)
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
    if completeness and backward != BACKWARDS[0]:
        self_test = SelfTest(find_sites(tower, blocks_named, "residual", path), activations)

    def one_pass(path: ClassTokenPath | None) -> tuple[Differentiated, Mapping[BlockProjection, Tensor]]:
        rules = backward_rules(model, tower, backward, activations if self_test else None)
        with attention.kept() as projections, rules as constants:
            found = token_gradients(model, read, forward, target, label, self_test, head, path, constants)
            return found, projections

    asked = [(site.module, site.reads_input) for site in (*read, *(self_test.sites if self_test else ()))]
    try:
        found, projections = one_pass(None if attention.read else class_token_path(tower, asked))
    except NotOneToken:
        reads_more_tokens.add(tower)
        found, projections = one_pass(None)
    output_gradients = attention.output_gradients([pair.G for pair in found.tokens[len(points) :]])
    complete = dict(zip(blocks_named, found.completeness))
    if summed and complete:
        complete[SUM] = Completeness.worst([complete[block] for block in summed])
    return Capture(
        prediction=found.prediction,
        head=found.head,
        target=found.target,
        layers=layers,
        summed=summed,
        backward=backward,
        activations=dict(zip(points, found.tokens)),
        norm_epsilons={key: point.norm_epsilon for key, point in points.items()},
        attention=attention,
        projections=projections,
        output_gradients=output_gradients,
        completeness={layer: complete[layer] for layer in layers if layer in complete},
        grid=grid,
        size=size,
    )


def _refuse_sums(methods: Sequence[str]) -> None:
    """Raises LayerError for methods whose maps do not add over blocks."""
    for method in methods:
        if method in ATTENTION_METHODS and ATTENTION_METHODS[method].sum_of is None:
            raise LayerError(
                f"method {method!r} has no maps to add for layer {SUM!r}: its map of a block follows from all blocks"
                " before it already; name the last block",
                "layers",
            )


def explain_tower(
    model: nn.Module,
    tower: nn.Module,
    images: Tensor,
    forward: Callable[[], Any],
    *,
    layers: Sequence[str] | None,
    method: str,
    site: str,
    target: Target,
    label: Tensor | None = None,
    grid: Callable[[int, int], Grid | None],
    pp_epsilon: float = DEFAULT_EPSILON,
    what: str = "images",
    backward: str = BACKWARDS[0],
    completeness: bool = True,
    head: HeadReader = ANY_MODEL,
) -> Explanation:
    """`images` explained by one method at one site: one pass, or one for each class for target "both".

    Args:
        model, tower, label, backward, completeness, head: as for `capture`.
        images: (B, 3, H, W), which `forward` gives to the model.
        layers: as for `capture`; None: the default of the tower's family.
        target: see `utils.cam.targets.score_weights`, and "both".
        grid: height and width → the patches of such an image, None for a convolutional network.
        what: how an error calls the images.

    Raises: as `explain`.
    """
    check_images(images, what)
    size = (images.shape[2], images.shape[3])
    if layers is None:
        with frozen_for_explaining(model):
            layers = [family_of(tower).default_layer(tower, forward)]
    names = layers

    def explain_one(one_target: Target) -> Explanation:
        captured = capture(
            model,
            tower,
            forward,
            layers=names,
            methods=[method],
            sites=[site],
            target=one_target,
            label=label,
            grid=grid(*size),
            size=size,
            backward=backward,
            completeness=completeness,
            head=head._replace(batch=len(images)),
        )
        return captured.explanation(method, site, pp_epsilon)

    if wants_both(target):
        return _both_classes(explain_one("fake"), explain_one("real"))
    return explain_one(target)


# --------------------------------------------------------------------------------------------------------- both classes


def wants_both(target: Target) -> bool:
    """Whether `target` means two maps per image, of "fake" and "real". Raises InputError where only some entries do."""
    if isinstance(target, Tensor):
        return False
    entries = [target] if isinstance(target, str) else list(target)
    if "both" not in entries:
        return False
    if any(entry != "both" for entry in entries):
        raise InputError("target 'both' gives two maps per image: give it for the whole batch, or for none of it")
    return True


def explained_names(layers: Sequence[str], target: Target) -> list[str]:
    """The names under which the maps of `layers` come: twice, `<layer>_fake` and `<layer>_real`, for target "both"."""
    if not wants_both(target):
        return list(dict.fromkeys(layers))
    return [f"{layer}_{one_class}" for layer in dict.fromkeys(layers) for one_class in ("fake", "real")]


def _both_classes(fake: Explanation, real: Explanation) -> Explanation:
    """One explanation of the same images, with the maps of both under the names that `explained_names` gives."""
    names = explained_names(list(fake.layers), "both")
    of_class = [(layer, explanation) for layer in fake.layers for explanation in (fake, real)]
    layers = {name: explanation.layers[layer] for name, (layer, explanation) in zip(names, of_class)}
    completeness = {
        name: explanation.completeness[layer]
        for name, (layer, explanation) in zip(names, of_class)
        if layer in explanation.completeness
    }
    return replace(fake, target=["both"] * len(fake.target), layers=layers, completeness=completeness)


# --------------------------------------------------------------------------------------------------------- any detector


def explain(
    model: nn.Module,
    images: Tensor,
    layers: str | int | Sequence[str | int] | None = None,
    method: str | None = None,
    target: Target = "fake",
    forward: Callable[[Tensor], Any] | None = None,
    site: str | None = None,
    backward: str | None = None,
    classes: Sequence[str | Mapping[str, str]] | None = None,
    completeness: bool = True,
) -> Explanation:
    """Prediction and maps of one batch, for any detector with a network of a known family somewhere inside.

    Args:
        model: any module that gives logits: as a tensor, as a mapping that holds one under "cls" or "logits", or as an
            object with `.logits` (see `utils.cam.heads`). Of a model in DataParallel, DistributedDataParallel or
            torch.compile the module inside is explained.
        images: (B, 3, H, W) floating point, normalised as the model wants them, on any device.
        layers: module names, relative to the model or to the network inside, or numbers of blocks (-1: the last); a
            block's name means what the block reads, at `site`; "fused" means the mean of the other layers' normalised
            maps, "sum" the sum of the raw maps of all blocks. One alone will do. None: the last block, or the last
            module of a convolutional network that returns maps, which a forward pass of its own has to find.
        method: one of `utils.cam.methods.METHOD_NAMES`; None means "gradcam". "auto" tries a short list of maps on
            those of `images` that the model calls fake, and explains all by the one whose hottest patches cost the
            model most (`Explanation.choice` says how it was chosen); what else is named here is kept to.
        target: one of `utils.cam.targets.TARGETS` but "label", the name of a class, or one entry per image (such a
            name, or 0 real / 1 fake). "both" makes two passes and gives every layer twice, as `<layer>_fake` and
            `<layer>_real`.
        forward: runs the model on `images`, where `model(images)` does not.
        site: one of `utils.cam.layers.SITES`; None means the first.
        backward: one of `utils.cam.backward.BACKWARDS`; None means "plain". "balanced" needs a transformer whose query
            and key projections are known, or a convolutional network with squeeze-and-excitation.
        classes: of the logits, in their order, as for `utils.cam.heads.named_classes`. None: one logit speaks for fake;
            of two or more the first speaks for real, all others for fake.
        completeness: with "balanced", test whether each block's shares add up, by a second backward pass.

    Returns:
        All tensors on the model's device.

    Raises:
        InputError: an unusable argument, a network of no known family, or no logits.
        LayerError: a layer that cannot be explained.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    check_images(images, "images")
    layers = as_names(layers) if layers is not None else None
    model = unwrapped(model)
    tower = find_tower(model)
    device = next((each.device for each in model.parameters() if each.device.type != "meta"), images.device)
    images = images.to(device)
    predict = forward or model
    head = HeadReader(type(model).__name__, None if classes is None else named_classes(classes, "classes"))
    choice = None
    if method == AUTO:
        named = Named(None, tuple(layers) if layers else None, site, backward)
        choice = _chosen(model, tower, images, predict, head, named, target)
        used = choice.used
        layers, method, backward = layers or [used.layer], used.method, used.backward
        site = used.site if used.site in SITES else None
    explanation = explain_tower(
        model,
        tower,
        images,
        partial(predict, images),
        layers=layers,
        method=method or "gradcam",
        site=site or SITES[0],
        target=target,
        grid=partial(family_of(tower).grid, tower),
        backward=backward or BACKWARDS[0],
        completeness=completeness,
        head=head,
    )
    return replace(explanation, choice=choice)


def _chosen(
    model: nn.Module,
    tower: nn.Module,
    images: Tensor,
    predict: Callable[[Tensor], Any],
    head: HeadReader,
    named: Named,
    target: Target,
) -> Choice:
    """The map that costs the model most, tried on images of this batch."""
    size = (images.shape[2], images.shape[3])
    grid = family_of(tower).grid(tower, *size)

    def margins(batch: Tensor) -> Tensor:
        with frozen_for_explaining(model), torch.no_grad():
            read = [head.read(predict(part)) for part in batch.split(len(images))]
        return torch.cat([kind.margin(prediction["cls"].float()) for prediction, kind in read])

    def asked(batch: Tensor, whose: Sequence[str], **options: Any) -> Capture:
        forward = partial(predict, batch)
        return capture(model, tower, forward, target=list(whose), grid=grid, size=size, head=head, **options)

    whose = target if isinstance(target, str) and target in ("margin", "real") else "fake"
    given = trial_images(margins, [{"image": images}], DEFAULT_IMAGES, whose)
    layers = NO_MAPS
    if grid is None:
        run = partial(predict, images[:1])
        with frozen_for_explaining(model):
            layers = map_layers(tower, family_of(tower).default_layer(tower, run), run)
    return choose_map(TriedDetector(asked, margins, in_batches(len(images))), given, shortlist(tower, layers, named))


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
