"""The engine's face: `explain` for any detector; `capture`, the one pass from which all maps follow, is beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base.allowed import AUTO, BACKWARDS, DEFAULT_IMAGES, SITES
from ..base.errors import InputError
from ..engine.checks import Checks, read_at_once
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import ANY_MODEL, HeadReader, named_classes
from ..engine.layers import as_names
from ..engine.methods import DEFAULT_EPSILON
from ..engine.recipe import Recipe
from ..engine.targets import Target
from ..engine.towers import Grid, family_of, find_tower, unwrapped
from ..judge.candidates import NO_MAPS, map_layers, shortlist
from ..judge.choosing import TriedDetector, choose_map, in_batches, trial_images
from ..judge.verdict import Choice
from .capture import Capture, capture
from .explanation import Explanation
from .pending import Pending
from .precision import FP32


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
    backward: str = BACKWARDS[0],
    completeness: bool = True,
    head: HeadReader = ANY_MODEL,
    backward_precision: str = FP32,
    checks: Checks,
) -> Explanation:
    """`images` explained by one method at one site: one pass, or one for each class for target "both".

    Args:
        model, tower, label, backward, completeness, head, backward_precision, checks: as for `capture`.
        images: (B, 3, H, W), of a shape that `check_shape` has passed, which `forward` gives to the model.
        layers: as for `capture`; None: the default of the tower's family.
        target: see `engine.targets.score_weights`, and "both".
        grid: height and width → the patches of such an image, None for a convolutional network.

    Raises: as `explain`.
    """
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
            backward_precision=backward_precision,
            checks=checks,
        )
        return captured.explanation(method, site, images, pp_epsilon, checks)

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
    layers = {name: explanation.layers[layer] for name, (layer, explanation) in zip(names, of_class, strict=True)}
    completeness = {
        name: explanation.completeness[layer]
        for name, (layer, explanation) in zip(names, of_class, strict=True)
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
    backward_precision: str = FP32,
) -> Explanation:
    """Prediction and maps of one batch, for any detector with a network of a known family somewhere inside.

    Args:
        model: any module that gives logits: as a tensor, as a mapping that holds one under "cls" or "logits", or as an
            object with `.logits` (see `engine.heads`). Of a model in DataParallel, DistributedDataParallel or
            torch.compile the module inside is explained.
        images: (B, 3, H, W) floating point, normalised as the model wants them, on any device.
        layers: module names, relative to the model or to the network inside, or numbers of blocks (-1: the last); a
            block's name means what the block reads, at `site`; "fused" means the mean of the other layers' normalised
            maps, "sum" the sum of the raw maps of all blocks. One alone will do. None: the last block, or the last
            module of a convolutional network that returns maps, which a forward pass of its own has to find.
        method: one of `engine.methods.METHOD_NAMES`; None means "gradcam". "auto" tries a short list of maps on
            those of `images` that the model calls fake, and explains all by the one whose hottest patches cost the
            model most (`Explanation.choice` says how it was chosen); what else is named here is kept to.
        target: one of `engine.targets.TARGETS` but "label", the name of a class, or one entry per image (such a
            name, or 0 real / 1 fake). "both" makes two passes and gives every layer twice, as `<layer>_fake` and
            `<layer>_real`.
        forward: runs the model on `images`, where `model(images)` does not.
        site: one of `engine.layers.SITES`; None means the first.
        backward: one of `engine.backward.BACKWARDS`; None means "plain". "balanced" needs a transformer whose query
            and key projections are known, or a convolutional network with squeeze-and-excitation.
        classes: of the logits, in their order, as for `engine.heads.named_classes`. None: one logit speaks for fake;
            of two or more the first speaks for real, all others for fake.
        completeness: with "balanced", test whether each block's shares add up, by a second backward pass.
        backward_precision: of the backward pass's matrix products: "fp32"; "bf16" or "tf32", which are faster on some
            devices and keep the order of a map's patches but for rounding; "auto": the fastest, measured once.

    Returns:
        All tensors on the model's device.

    Raises:
        InputError: an unusable argument, a network of no known family, or no logits.
        LayerError: a layer that cannot be explained.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    check_shape(images, "images")
    layers = as_names(layers) if layers is not None else None
    model = unwrapped(model)
    tower = find_tower(model)
    device = next((each.device for each in model.parameters() if each.device.type != "meta"), images.device)
    images = images.to(device)
    predict = forward or model
    head = HeadReader(type(model).__name__, None if classes is None else named_classes(classes, "classes"))
    choice = None
    if method == AUTO:
        check_pixels(images, "images")
        named = Recipe.open(layers or None, site, backward)
        choice = _chosen(model, tower, images, predict, head, named, target)
        used = choice.used
        layers, method, backward = layers or [used.layer], used.method, used.backward
        site = used.site if used.site in SITES else None

    def explained(checks: Checks) -> Explanation:
        check_pixels(images, "images", checks)
        return explain_tower(
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
            backward_precision=backward_precision,
            checks=checks,
        )

    return replace(Pending(explained).result(), choice=choice)


def _chosen(
    model: nn.Module,
    tower: nn.Module,
    images: Tensor,
    predict: Callable[[Tensor], Any],
    head: HeadReader,
    named: Recipe,
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
    """Raises InputError, which calls them `what`, for anything but finite images (B, 3, H, W)."""
    check_shape(images, what)
    check_pixels(images, what)


def check_pixels(
    images: Tensor, what: str, checks: Checks | None = None, further: Callable[[float, float], None] | None = None
) -> None:
    """Raises InputError for NaN or infinite pixels; `further` gets their least and their largest value."""

    def tell(ends: Tensor) -> None:
        least, largest = ends.tolist()
        if not (math.isfinite(least) and math.isfinite(largest)):
            bad = (~torch.isfinite(images).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise InputError(f"{what} holds NaN or infinite pixels in image(s) {bad}: check how they were normalised")
        if further is not None:
            further(least, largest)

    with read_at_once(checks) as asked:
        asked.add(torch.stack(images.detach().aminmax()), tell)


def check_shape(images: Any, what: str) -> None:
    """Raises InputError for anything but a batch of floating point images (B, 3, H, W)."""
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
