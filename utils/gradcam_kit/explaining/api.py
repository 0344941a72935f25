"""The public functions `explain` and `choose`, for any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor, nn

from ..base.allowed import AUTO, DEFAULT_IMAGES
from ..base.errors import InputError
from ..engine.heads import Target, named_classes
from ..engine.real.bank import TokenBank
from ..engine.recipe import Recipe, layer_names
from ..engine.towers import unwrapped
from ..judge.choosing import choose_map, in_batches, trial_images
from ..judge.verdict import Choice
from .clips.choosing import choose_on_batches
from .clips.one_pass import explain_clips
from .clips.subject import clip_subject_of
from .explanation import Explanation
from .images import Batch, are_clips, as_batch, as_batches, check_clips, check_images, check_shape
from .mixin import GradCAMMixin, trial_target
from .one_pass import BatchRequest, explain_batch
from .precision import check_backward_precision
from .real_tokens import tried, with_bank
from .subject import Subject, device_of, subject_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

IMAGES = "images"  # in errors


class Options(TypedDict, total=False):
    """The keyword options of `explain`.

    Args:
        site: one of `base.allowed.SITES`; default: the first.
        backward: one of `base.allowed.BACKWARDS`; default: "plain". "balanced" needs a transformer with known query and
            key projections, or a convolutional network with squeeze-and-excitation.
        classes: names of the logits in their order, see `engine.heads.named_classes`. Default: a single logit means
            fake; with several, the first means real and the others mean fake.
        completeness: with "balanced", test by a second backward pass whether each block's token contributions and
            bias terms add up to the score (default True).
        backward_precision: precision of the matrix products in the backward pass: "fp32"; "bf16" or "tf32", which are
            faster on some devices and change maps only by rounding; "auto": the fastest, measured once.
        bank: `Bank.of(model, real_images)`: method "contrast" and verdicts compare patches with it. Default: the bank
            of `calibrate_gradcam`. Without a bank, "auto" makes one from the images that the model calls real.
        clip_layout: layout of the model's clips, "btchw" or "bcthw". Default: the one that the model accepts.
    """

    site: str | None
    backward: str | None
    classes: Sequence[str | Mapping[str, str]] | None
    completeness: bool
    backward_precision: str
    bank: TokenBank | None
    clip_layout: str | None


def explain(
    model: nn.Module | Any,
    images: Tensor | Mapping[str, Any],
    layers: Any = None,
    method: str | None = None,
    target: Target | None = None,
    forward: Callable[[Tensor], Any] | None = None,
    recipes: Sequence[Recipe | str] | Recipe | str | None = None,
    **options: Unpack[Options],
) -> Explanation:
    """Explain one batch: predictions and maps. The model must contain a network of a known family.

    Args:
        model: any module that returns logits: as a tensor, a mapping with "cls" or "logits", or an object with
            `.logits` (see `engine.heads`); or one of our detectors. DataParallel, DistributedDataParallel and
            torch.compile are unwrapped.
        images: (B, 3, H, W) floating point, normalised, on any device; for a model of clips (B, T, 3, H, W), which
            returns a `ClipExplanation`. Or a mapping with such an `image`, and optionally `label` (B,) for target
            "label"; `video`, the name of each image's video, so that no image is compared with frames of its own video;
            `paired_real` (B, 3, H, W), the original real images, for "contrast" and verdicts to compare with.
        layers: names of modules (relative to the model or its network), numbers of blocks (-1: the last) or modules;
            one or several. Naming a block selects its input, at `site`. "fused" is the mean of the other layers'
            normalised maps, "sum" the sum of all blocks' raw maps. None: the last block; in a convolutional network
            the last module that returns feature maps, which the first call finds by a forward pass.
        method: one of `engine.methods.method_names`. None: "gradcam", or the detector's config. "auto": try several
            maps on the images that the model calls fake, and use the one whose hottest patches matter most to the model
            (see `Explanation.choice`); other arguments restrict the candidates.
        target: see `engine.heads.target_entries`. None: "predicted", or the detector's config. "both" takes two
            passes and returns every layer twice, as `<layer>_fake` and `<layer>_real`.
        forward: runs the model on `images`, if `model(images)` does not.
        recipes: several maps from one pass, instead of `layers`, `method`, `site` and `backward`.
        options: see `Options`.

    Returns:
        An Explanation; all tensors are on the model's device, heatmaps are float32 (B, H, W) in [0, 1].

    Raises:
        InputError: an unusable argument, a network of no known family, or no logits.
        LayerError: a layer that cannot be explained.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"explain() got an unexpected keyword argument {min(unknown)!r}")
    batch = as_batch(images, IMAGES)
    if are_clips(batch["image"]):
        how = recipes, layers, method, options.get("site"), options.get("backward")
        return _explained_clips(model, batch, target, forward, how, options)
    check_shape(batch["image"], IMAGES)
    within = layer_names(layers)
    if recipes is not None:
        several = [recipes] if isinstance(recipes, (Recipe, str)) else recipes
        within = tuple(layer for one in several for layer in Recipe.of(one).layers)
    subject = subject_of(model, batch["image"], forward, options.get("classes"), within)
    batch = _on_device(batch, subject)
    precision = options.get("backward_precision", subject.precision)
    check_backward_precision(precision)
    subject = replace(
        subject,
        precision=precision,
        bank=options.get("bank") or subject.bank,
    )
    target = subject.target if target is None else target
    site, backward, choice = options.get("site"), options.get("backward"), None
    if method == AUTO and recipes is None:
        named = Recipe.open(layers, site, backward)
        choice, subject = _chosen(subject, [batch], named, trial_target(target), DEFAULT_IMAGES)
        recipes = [Recipe.open(layers).using(choice.used)]
        layers = method = site = backward = None
    asked = BatchRequest(
        subject.recipes_for(recipes, layers, method, site, backward), target, options.get("completeness", True)
    )
    found = explain_batch(subject, batch, asked, IMAGES)
    detector = unwrapped(model) if isinstance(model, nn.Module) else model
    untrained = isinstance(detector, GradCAMMixin) and detector.is_untrained()
    return replace(found, choice=choice, untrained=untrained)


def _explained_clips(
    model: Any,
    batch: Batch,
    target: Target | None,
    forward: Callable[[Tensor], Any] | None,
    named: tuple[Any, ...],
    options: Options,
) -> Explanation:
    """Explain clips (B, T, 3, H, W). `named`: recipes, layers, method, site and backward."""
    check_clips(batch["image"], IMAGES)
    for option in ("bank", "completeness"):
        if options.get(option):
            raise InputError(f"{option} is only for images: leave it out for clips")
    classes = None if options.get("classes") is None else named_classes(options["classes"], "classes")
    device = device_of(unwrapped(model)) if isinstance(model, nn.Module) else batch["image"].device
    batch = {**batch, "image": batch["image"].to(device)}
    subject = clip_subject_of(model, batch["image"], forward, options.get("clip_layout"), classes)
    target, choice = subject.target if target is None else target, None
    recipes, layers, method, site, backward = named
    if method == AUTO and recipes is None:
        open_one = replace(subject, recipe=Recipe.open(layers, site, backward))
        choice = choose_on_batches(open_one, [batch], trial_target(target))
        named = ([Recipe.open(layers).using(choice.used)], None, None, None, None)
    return replace(
        explain_clips(subject, batch, BatchRequest(subject.recipes_for(*named), target), IMAGES), choice=choice
    )


def choose(
    model: nn.Module | Any,
    images: Any,
    target: Target | None = None,
    forward: Callable[[Tensor], Any] | None = None,
    recipe: Recipe | None = None,
    count: int = DEFAULT_IMAGES,
    bank: TokenBank | None = None,
    clip_layout: str | None = None,
) -> Recipe:
    """Choose, by replacing patches, the map whose hottest patches matter most to the model.

    Args:
        model, forward, clip_layout: as for `explain`.
        images: a batch as for `explain`, or several. A mapping may also hold `video`, the name of each image's video,
            and `paired_real` (B, 3, H, W), the original real images.
        target: "margin" or "real"; anything else means "fake". The maps on trial explain this target, on images that
            the model calls fake.
        recipe: restricts the choice; only fields that are "auto" are chosen. None: all fields.
        count: maximum number of images called fake, and also of images called real; for clips at most 16.
        bank: as for `explain`; None: a bank from the images that the model calls real.

    Raises:
        InputError: no image, or an unusable argument.
    """
    batches = [as_batch(each, IMAGES) for each in as_batches(images, IMAGES)]
    if not batches:
        raise InputError("images is empty: give at least one batch")
    first = batches[0]["image"]
    if are_clips(first):
        if bank is not None:
            raise InputError("bank is only for images: leave it out for clips")
        clips = clip_subject_of(model, first, forward, clip_layout)
        clips = replace(clips, recipe=Recipe.open() if recipe is None else Recipe.of(recipe))
        shown = trial_target(clips.target if target is None else target)
        return choose_on_batches(clips, batches, shown, (count, len(first))).used
    for batch in batches:
        check_shape(batch["image"], IMAGES)
    subject = subject_of(model, first, forward)
    subject = replace(subject, bank=bank or subject.bank)
    batches = [_on_device(batch, subject) for batch in batches]
    wanted = Recipe.open() if recipe is None else Recipe.of(recipe)
    choice, _ = _chosen(subject, batches, wanted, trial_target(subject.target if target is None else target), count)
    return choice.used


def _chosen(
    subject: Subject, batches: Sequence[Batch], named: Recipe, target: str, count: int
) -> tuple[Choice, Subject]:
    """Choose the map on these images. Return also the subject with a bank of the real ones."""
    for batch in batches:
        check_images(batch["image"], IMAGES)
    in_parts = in_batches(len(batches[0]["image"]))
    given = trial_images(tried(subject, in_parts).margins, batches, count, target)
    subject = with_bank(subject, given)
    return choose_map(tried(subject, in_parts), given, subject.candidates(named)), subject


def _on_device(batch: Batch, subject: Subject) -> Batch:
    device = device_of(subject.tower.model)
    images = {name: batch[name] for name in ("image", "paired_real") if name in batch}
    if all(one.device == device for one in images.values()):
        return batch
    return {**batch, **{name: one.to(device) for name, one in images.items()}}
