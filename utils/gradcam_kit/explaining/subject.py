"""A model as everything here sees it: what runs, where its layers are, how its output is read and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..base.allowed import AUTO
from ..base.errors import InputError
from ..engine.checks import Checks
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import ANY_MODEL, Head, HeadReader, named_classes
from ..engine.layers import SCALED
from ..engine.methods import DEFAULT_EPSILON
from ..engine.outputs.probabilities import Reading
from ..engine.real.bank import TokenBank
from ..engine.real.contrast import CONTRAST, CONTRASTS
from ..engine.recipe import BALANCED, PLAIN, Recipe, layer_names, site_of
from ..engine.spatial_layers import SpatialLayer, last_spatial_layer
from ..engine.targets import Target
from ..engine.towers import Grid, unwrapped
from ..engine.towers.places import places_of_patches
from ..engine.towers.tower import Tower, tower_of
from ..judge.candidates import NO_MAPS, MapLayers, map_layers, shortlist
from ..judge.verdict import Choice
from .asking.request import Request
from .capture import Capture, capture
from .explanation import UNKNOWN_LOOK, Look
from .images import Batch
from .precision import FP32

SAMPLED = 16  # values of each parameter that tell whether it was written to


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to be explained. Made by `subject_of`; the costly part, its tower, is kept with the model.

    Args:
        tower: where layers are named, see `Tower`; `tower.model` is what runs.
        predict: a batch → the model's output, as `head` reads it.
        grid: height and width of an image → its patches; None for a convolutional network.
        noise: a few images, to see what runs in a forward pass.
        recipe: which map, where a call names none; an open one is left to a trial.
        recipes: of what is drawn where nothing is named, if that is more than one kind of map.
        says_nothing: nothing of the recipe was named, not even "auto".
        choice: how the map was chosen, if it was.
        bank: tokens of images that the model calls real, where there are any.
        check_range: gets the least and the largest value of the images, and may refuse them.
        name: of the detector, in errors.
        states_tokens: whether the detector's own code says how its tokens lie, and is believed.
        reading: what is known of the outputs of `predict`.
    """

    tower: Tower
    predict: Callable[[Batch], Any]
    head: HeadReader
    grid: Callable[[int, int], Grid | None]
    noise: Callable[[], Tensor]
    look: Look = UNKNOWN_LOOK
    recipe: Recipe = field(default_factory=Recipe)
    recipes: tuple[Recipe, ...] = ()
    target: Target = "predicted"
    pp_epsilon: float = DEFAULT_EPSILON
    precision: str = FP32
    says_nothing: bool = False
    choice: Choice | None = None
    bank: TokenBank | None = None
    check_range: Callable[[float, float], None] | None = None
    name: str = ""
    states_tokens: bool = False
    reading: Reading = field(default_factory=Reading)

    def as_subject(self) -> Subject:
        """Itself, as any detector."""
        return self

    def run(self, batch: Batch) -> Any:
        """A forward pass: what `head` reads, logits also where the model returns probabilities."""

        def predict(images: Tensor) -> Any:
            return self.predict(batch if images is batch["image"] else {"image": images})

        return self.reading.output(predict, batch["image"], self.head.detector)

    def patches(self, images: Tensor) -> Grid | None:
        """How tokens lie on images of that size: as `grid` says, with what a forward pass shows to stand beside them.

        A tower may have been given tokens, or made of another order, since its family was written down.
        """
        grid, tower = self.grid(images.shape[2], images.shape[3]), self.tower
        if grid is None or grid.halvings or self.states_tokens:
            return grid
        if not tower.blocks or not tower.family.blocks_give_tokens:
            return grid

        def seen() -> tuple[int, int] | None:
            with frozen_for_explaining(tower.model, tower.structure), torch.no_grad():
                return places_of_patches(tower, lambda some: self.predict({"image": some}), images.detach(), grid)

        found = tower.once(("places", grid, *images.shape[2:]), seen)
        if found is None:
            return grid._replace(prefix=grid.prefix or 0)
        return grid._replace(prefix=found[0], suffix=found[1])

    def predict_noise(self) -> Any:
        """A forward pass on noise."""
        return self.run({"image": self.noise()})

    def default_layers(self, method: str = "") -> tuple[str, ...]:
        """The layers explained where none is named: the last block (of a contrast SCALED), else `default_spatial`."""
        if method in CONTRASTS and self.tower.blocks:
            return (SCALED,)
        return self.tower.blocks[-1:] or (self.default_spatial().name,)

    def default_spatial(self) -> SpatialLayer:
        """The last activation on a grid that the score depends on. A forward pass finds it, once. Raises InputError."""

        def find() -> SpatialLayer:
            with frozen_for_explaining(self.tower.model, self.tower.structure):
                return last_spatial_layer(self.tower.module, self.predict_noise)

        try:
            return self.tower.once("default layer", find)
        except InputError as error:
            if not self.name or str(error).startswith(self.name):
                raise
            raise InputError(f"{self.name}: {error}") from error

    def map_layers(self) -> MapLayers:
        """Where a network without blocks may be read: a forward pass finds it, once. With blocks, nothing."""

        def find() -> MapLayers:
            if self.tower.blocks:
                return NO_MAPS
            default = self.default_layers()[-1]
            with frozen_for_explaining(self.tower.model, self.tower.structure):
                return map_layers(self.tower.module, default, self.predict_noise)

        return self.tower.once("map layers", find)

    def candidates(self, named: Recipe | None = None, bank: bool | None = None) -> list[Recipe]:
        """The maps worth trying, the one to fall back on first; what `named` leaves open is filled in.

        `bank`: whether there are real tokens to compare with; None: whether there are now.
        """
        named = self.recipe if named is None else named
        named = named if named.is_open else Recipe.open()
        return shortlist(self.tower, self.map_layers(), named, self.bank is not None if bank is None else bank)

    def drawn(self) -> Recipe:
        """The recipe with nothing left open: of what leaves a choice the first candidate, until a trial was made.

        Where nothing of it was named it is Grad-CAM at the last block.
        """
        if not self.recipe.is_open:
            return self.recipe
        return self.recipe.closed() if self.says_nothing else self.recipe.using(self.candidates()[0])

    def all_drawn(self) -> list[Recipe]:
        """The recipes of all that is drawn where a call names nothing."""
        return [self.drawn() if one.is_open else one for one in self.recipes] or [self.drawn()]

    def recipe_for(self, layers: Any, method: str | None, site: str | None, backward: str | None) -> Recipe:
        """The recipe of a call that names these, with nothing left open; what it does not name is as in `recipe`."""
        names, recipe = layer_names(layers), self.recipe
        if method == AUTO and not names and (self.says_nothing or not recipe.is_open):
            recipe = self.choice.used if self.choice else self.candidates()[0]
        elif not recipe.is_open or (not names and method in (None, AUTO)):
            recipe = self.drawn()
        else:
            recipe = recipe.closed()
        method = recipe.method if method in (None, AUTO) else method
        return Recipe(method, names or recipe.layers, site or recipe.site, backward or recipe.backward)

    def recipes_for(self, recipes: Any, *named: Any) -> list[Recipe]:
        """The recipes of a call that gives `recipes`, or else what `recipe_for` takes. Raises InputError for both."""
        if recipes is None and all(each is None for each in named):
            return self.all_drawn()
        return [self.recipe_for(*named)] if recipes is None else named_recipes(recipes, named)

    def resolved(self, recipe: Recipe) -> Recipe:
        """`recipe` with its layers named, its site and its backward rule. Raises InputError for an open one."""
        if recipe.is_open:
            raise InputError(f"recipe {recipe} leaves its map open: choose(model, images) gives one that is closed")
        backward = PLAIN if recipe.backward == AUTO else recipe.backward
        site = site_of(recipe.method, backward) if recipe.site == AUTO else recipe.site
        return Recipe(recipe.method, recipe.layers or self.default_layers(recipe.method), site, backward)

    def evidence_recipe(self, recipes: Sequence[Recipe]) -> Recipe:
        """The contrast map that verdicts follow from, in the pass of one of `recipes` where that reads its tokens."""
        layers = self.default_layers(CONTRAST)
        shared = next((one for one in recipes if one.method in CONTRASTS and one.backward != BALANCED), None)
        if shared is not None and set(layers) <= set(shared.layers):
            return Recipe(CONTRAST, layers, backward=shared.backward)
        return Recipe(CONTRAST, layers, backward=PLAIN)

    def capture(
        self,
        batch: Batch,
        recipes: Sequence[Recipe],
        target: Target,
        size: tuple[int, int] | None = None,
        completeness: bool = False,
        checks: Checks | None = None,
        real: Mapping[str, Tensor] | None = None,
    ) -> Capture:
        """One pass for recipes of one backward rule. `size` of the normalised maps, the image's where it is None.

        `batch` may hold `video`, a name for each image, and `has_pair`; `real` and `has_pair` as in `Request`.
        """
        image = batch["image"]
        height, width = image.shape[2:]
        request = Request(
            recipes=recipes,
            target=target,
            size=size or (height, width),
            label=batch.get("label"),
            completeness=completeness,
            precision=self.precision,
            pp_epsilon=self.pp_epsilon,
            bank=self.bank,
            videos=batch.get("video"),
            real=real or {},
            has_pair=batch.get("has_pair"),
        )
        head = self.head._replace(batch=len(image))
        return capture(self.tower, partial(self.run, batch), head, self.patches(image), request, checks)

    def logits(self, images: Tensor) -> Tensor:
        """(N, K): what the head says of each of the images (N, 3, H, W)."""
        return self._scores(images)[0]

    def margins(self, images: Tensor) -> Tensor:
        """(N,) float32: fake − real of each of the images (N, 3, H, W)."""
        logits, head = self._scores(images)
        return head.margin(logits.float())

    def _scores(self, images: Tensor) -> tuple[Tensor, Head]:
        with frozen_for_explaining(self.tower.model, self.tower.structure), torch.no_grad():
            prediction, head = self.head._replace(batch=len(images)).read(self.run({"image": images}))
        return prediction["cls"], head


def named_recipes(recipes: Any, named: Sequence[Any]) -> list[Recipe]:
    """The recipes that a call gives; `named`: what it gives beside them. Raises InputError for both, and for none."""
    if any(each is not None for each in named):
        raise InputError("recipes stand instead of layers, method, site and backward: give one or the other")
    found = [Recipe.of(each) for each in ([recipes] if isinstance(recipes, (Recipe, str)) else recipes)]
    if not found:
        raise InputError("recipes is empty: give at least one, such as Recipe('hirescam', layers=-1)")
    return found


@runtime_checkable
class HasSubject(Protocol):
    """A detector that says itself how it is explained."""

    def as_subject(self) -> Subject:
        """This detector as a `Subject`."""
        ...


def subject_of(
    model: Any,
    images: Tensor | None = None,
    forward: Callable[[Tensor], Any] | None = None,
    classes: Any = None,
    layers: Sequence[str] = (),
) -> Subject:
    """The subject that a detector of ours, a loaded detector, or any module is.

    Args:
        model: of a model in DataParallel, DistributedDataParallel or torch.compile the module inside is meant.
        images: (B, 3, H, W), to see what runs where a plain module has to be looked at.
        forward: runs the model on images, where `model(images)` does not.
        classes: of the logits, in their order, as for `engine.heads.named_classes`.
        layers: that are going to be explained: of several towers side by side the one is meant that they lie in.

    Raises:
        InputError: not a model, a network of no known family, or unusable `classes`.
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
    elif not isinstance(model, HasSubject):
        raise InputError(f"model is {type(model).__name__}: give a torch.nn.Module that returns logits, or a detector")
    head = None if classes is None else named_classes(classes, "classes")
    if isinstance(model, HasSubject):
        subject = model.as_subject()
        changes: dict[str, Any] = {}
        if forward is not None:
            changes |= {"predict": lambda batch: forward(batch["image"]), "reading": Reading()}
        if head is not None:
            changes["head"] = subject.head._replace(classes=head)
        return replace(subject, **changes)
    tower = tower_of(model, None, layers)
    run = forward or model
    return Subject(
        tower=tower,
        predict=lambda batch: run(batch["image"]),
        head=ANY_MODEL._replace(detector=type(model).__name__, classes=head),
        grid=tower.grid,
        noise=lambda: torch.randn(1, 3, 224, 224).to(device_of(model)) if images is None else images[:1],
        reading=tower.once(Reading, Reading) if forward is None else Reading(),
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the weights are; the CPU for a model without any."""
    return next((each.device for each in model.parameters() if each.device.type != "meta"), torch.device("cpu"))


class Weights:
    """What parameters were: which tensors, how often they had been written to, and some of their values.

    Loading and training change them. `parameter.data` is written to without being counted, and tensors made under
    `torch.inference_mode` count nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        now = list(parameters)
        self._counted = [_count(each) for each in now]
        self._values = [_sampled(each) for each in now]

    def are_of(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether these are the same. Moved or cast to another type they still are."""
        now = list(parameters)
        if [_count(each) for each in now] != self._counted:
            return False
        found = [_sampled(each) for each in now]
        return all(torch.equal(old.to(new.dtype), new) for old, new in zip(self._values, found, strict=True))


def _count(parameter: nn.Parameter) -> tuple[int, int]:
    return id(parameter), 0 if parameter.is_inference() else parameter._version


def _sampled(parameter: nn.Parameter) -> Tensor:
    """Some values, on the CPU; none of a parameter without data."""
    if parameter.is_meta or not parameter.numel():
        return torch.empty(0, dtype=parameter.dtype)
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLED)].clone().cpu()
