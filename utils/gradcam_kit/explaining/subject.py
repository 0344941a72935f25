"""The Subject: a model with its layers, the reading of its output, and its drawing style."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ..base.allowed import AUTO
from ..base.errors import InputError
from ..engine.checks import Checks
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import ANY_MODEL, Head, HeadReader, Target, named_classes
from ..engine.layers import SCALED
from ..engine.methods import DEFAULT_EPSILON
from ..engine.outputs.probabilities import Reading
from ..engine.real.bank import TokenBank
from ..engine.real.contrast import CONTRAST, CONTRASTS
from ..engine.recipe import BALANCED, PLAIN, Recipe, layer_names, site_of
from ..engine.spatial_layers import SpatialLayer, last_spatial_layer
from ..engine.towers import Grid, unwrapped
from ..engine.towers.places import find_patches, note_unread_border
from ..engine.towers.tower import Tower, tower_of
from ..judge.candidates import NO_MAPS, MapLayers, map_layers, shortlist
from ..judge.verdict import Choice
from .asking.request import Request
from .capture import Capture, capture
from .explanation import UNKNOWN_STYLE, DrawStyle
from .images import Batch
from .precision import FP32

AnyOf = TypeVar("AnyOf", bound="AnySubject")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnySubject(ABC):
    """A model of images or clips to explain. Its tower, the costly part, is cached with the model.

    Args:
        tower: defines the layers' names, see `Tower`; `tower.model` is the model.
        predict: a batch → the model's output, for `head` to read.
        noise: returns a few images, or clips, for a test pass.
        recipe: the recipe if a call names none; an open one is left to a trial.
        recipes: the recipes to draw if a call names none, if there are several.
        reading: facts about the outputs of `predict`.
    """

    tower: Tower
    predict: Callable[[Batch], Any]
    head: HeadReader
    noise: Callable[[], Tensor]
    look: DrawStyle = UNKNOWN_STYLE
    recipe: Recipe = field(default_factory=Recipe)
    recipes: tuple[Recipe, ...] = ()
    target: Target = "predicted"
    pp_epsilon: float = DEFAULT_EPSILON
    reading: Reading = field(default_factory=Reading)

    def run(self, batch: Batch) -> Any:
        """Run a forward pass. Return an output that `head` can read, with logits even for a model of probabilities."""
        if self.reading.known and (self.reading.may_mix is not None or len(batch["image"]) == 1):
            return self.predict(batch)  # nothing is left to find out

        def predict(images: Tensor) -> Any:
            return self.predict(batch if images is batch["image"] else {"image": images})

        return self.reading.output(predict, batch["image"], self.head.detector)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, 3, H, W), or of clips (N, T, 3, H, W)."""
        return self._scores(images)[0]

    def margins(self, images: Tensor) -> Tensor:
        """Return the margins fake − real, (N,) float32, of images (N, 3, H, W), or of clips (N, T, 3, H, W)."""
        logits, head = self._scores(images)
        return head.margin(logits.float())

    def _scores(self, images: Tensor) -> tuple[Tensor, Head]:
        with frozen_for_explaining(self.tower.model, self.tower.structure), torch.no_grad():
            prediction, head = self.head._replace(batch=len(images)).read(self.run({"image": images}))
        return prediction["cls"], head

    def all_drawn(self) -> list[Recipe]:
        """Return the recipes to draw if a call names none."""
        return [self.drawn() if one.is_open else one for one in self.recipes] or [self.drawn()]

    def recipes_for(self, recipes: Any, *named: Any) -> list[Recipe]:
        """Return `recipes`, or the one of `recipe_for(*named)`. Raises InputError if both are given."""
        if recipes is None:
            return self.all_drawn() if all(each is None for each in named) else [self.recipe_for(*named)]
        if any(each is not None for each in named):
            raise InputError("recipes and (layers, method, site, backward) exclude each other: give one or the other")
        found = [Recipe.of(each) for each in ([recipes] if isinstance(recipes, (Recipe, str)) else recipes)]
        if not found:
            raise InputError("recipes is empty: give at least one, such as Recipe('hirescam', layers=-1)")
        return found

    @abstractmethod
    def drawn(self) -> Recipe:
        """Return the recipe to draw without a trial."""

    @abstractmethod
    def recipe_for(self, layers: Any, method: str | None, site: str | None, backward: str | None) -> Recipe:
        """Return the recipe of a call with these arguments; missing ones come from `recipe`."""

    @abstractmethod
    def resolved(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with layers, site and backward rule filled in. Raises InputError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject(AnySubject):
    """A model of images to explain; `subject_of` makes it.

    Args:
        grid: height and width of an image → its patches; None for a convolutional network.
        is_default: no field of the recipe was named, not even "auto".
        choice: how the map was chosen, if it was.
        bank: tokens of images that the model calls real, if any.
        check_range: receives the images' smallest and largest value, and may raise.
        name: the detector's name in errors.
        states_tokens: whether the detector's own code defines the grid of its tokens.
    """

    grid: Callable[[int, int], Grid | None]
    precision: str = FP32
    is_default: bool = False
    choice: Choice | None = None
    bank: TokenBank | None = None
    check_range: Callable[[float, float], None] | None = None
    name: str = ""
    states_tokens: bool = False

    def as_subject(self) -> Subject:
        """Return itself."""
        return self

    def patches(self, images: Tensor) -> Grid | None:
        """Return the tokens' grid on images of this size: that of `grid`, unless forward passes correct it."""
        grid, tower = self.grid(images.shape[2], images.shape[3]), self.tower
        if grid is None or grid.halvings or self.states_tokens:
            return grid
        if not tower.blocks or not tower.family.blocks_give_tokens:
            return grid

        def seen() -> Grid | None:
            with frozen_for_explaining(tower.model, tower.structure), torch.no_grad():
                return find_patches(tower, lambda some: self.predict({"image": some}), images.detach(), self.grid)

        found = tower.once(("places", grid, *images.shape[2:]), seen)
        return grid._replace(prefix=grid.prefix or 0) if found is None else found

    def note_unread_border(self, images: Tensor, grid: Grid | None) -> None:
        """Warn once if the model does not read the border of images of this size, so that a map is displaced."""
        tower, one = self.tower, images[:1].detach()

        def test() -> None:
            with frozen_for_explaining(tower.model, tower.structure), torch.no_grad():
                note_unread_border(tower, lambda some: self.predict({"image": some}), one, grid)

        tower.once(("border", *images.shape[2:]), test)

    def predict_noise(self) -> Any:
        """Run a forward pass on noise."""
        return self.run({"image": self.noise()})

    def default_layers(self, method: str = "") -> tuple[str, ...]:
        """Return the default layers: the last block (SCALED for a contrast), else `default_spatial`."""
        if method in CONTRASTS and self.tower.blocks:
            return (SCALED,)
        return self.tower.blocks[-1:] or (self.default_spatial().name,)

    def default_spatial(self) -> SpatialLayer:
        """Find the last activation on a grid that the score depends on, once, by a forward pass. Raises InputError."""

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
        """Find the layers of a network without blocks, once, by a forward pass; none for a network with blocks."""

        def find() -> MapLayers:
            if self.tower.blocks:
                return NO_MAPS
            default = self.default_layers()[-1]
            with frozen_for_explaining(self.tower.model, self.tower.structure):
                return map_layers(self.tower.module, default, self.predict_noise)

        return self.tower.once("map layers", find)

    def candidates(self, named: Recipe | None = None, bank: bool | None = None) -> list[Recipe]:
        """List the candidates that fill in the open fields of `named`; the first is the fallback.

        `bank`: whether there are real tokens to compare with; None: whether the subject has a bank.
        """
        named = self.recipe if named is None else named
        named = named if named.is_open else Recipe.open()
        return shortlist(self.tower, self.map_layers(), named, self.bank is not None if bank is None else bank)

    def drawn(self) -> Recipe:
        """Return the recipe to draw without a trial: the first candidate if a choice is left.

        If nothing was named, it is Grad-CAM at the last block.
        """
        if not self.recipe.is_open:
            return self.recipe
        return self.recipe.closed() if self.is_default else self.recipe.using(self.candidates()[0])

    def recipe_for(self, layers: Any, method: str | None, site: str | None, backward: str | None) -> Recipe:
        names, recipe = layer_names(layers), self.recipe
        if method == AUTO and not names and (self.is_default or not recipe.is_open):
            recipe = self.choice.used if self.choice else self.candidates()[0]
        elif not recipe.is_open or (not names and method in (None, AUTO)):
            recipe = self.drawn()
        else:
            recipe = recipe.closed()
        method = recipe.method if method in (None, AUTO) else method
        return Recipe(method, names or recipe.layers, site or recipe.site, backward or recipe.backward)

    def resolved(self, recipe: Recipe) -> Recipe:
        if recipe.is_open:
            raise InputError(f"recipe {recipe} has open fields: choose(model, images) fills them in")
        if recipe.layers and AUTO not in (recipe.site, recipe.backward):
            return recipe
        backward = PLAIN if recipe.backward == AUTO else recipe.backward
        site = site_of(recipe.method, backward) if recipe.site == AUTO else recipe.site
        return Recipe(recipe.method, recipe.layers or self.default_layers(recipe.method), site, backward)

    def evidence_recipe(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the contrast map for the verdicts, sharing the pass of one of `recipes` if possible."""
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
        """Run one pass for recipes of one backward rule. `size`: of the normalised maps; None: the image's.

        `batch` may hold `video`, a name per image, and `has_pair`; `real` and `has_pair` as in `Request`.
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


@runtime_checkable
class HasSubject(Protocol):
    """A detector that makes its own Subject."""

    def as_subject(self) -> Subject:
        """Return the detector as a Subject."""
        ...


def subject_of(
    model: Any,
    images: Tensor | None = None,
    forward: Callable[[Tensor], Any] | None = None,
    classes: Any = None,
    layers: Sequence[str] = (),
) -> Subject:
    """Make the Subject of one of our detectors, a loaded detector, or any module.

    Args:
        model: DataParallel, DistributedDataParallel and torch.compile are unwrapped.
        images: (B, 3, H, W), for a test pass of a plain module.
        forward: runs the model on images, if `model(images)` does not.
        classes: names of the logits in their order, see `engine.heads.named_classes`.
        layers: the layers to explain; they select one of several parallel towers.

    Raises:
        InputError: not a model, a network of no known family, or unusable `classes`.
    """
    model = explained_model(model, HasSubject)
    head = None if classes is None else named_classes(classes, "classes")
    if isinstance(model, HasSubject):
        return with_forward(model.as_subject(), forward, head)
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


def explained_model(model: Any, detector: type) -> Any:
    """Return the model inside training wrappers. Raises InputError unless it is a module or such a `detector`."""
    if isinstance(model, nn.Module):
        return unwrapped(model)
    if not isinstance(model, detector):
        raise InputError(f"model is {type(model).__name__}: give a torch.nn.Module that returns logits, or a detector")
    return model


def with_forward(subject: AnyOf, forward: Callable[[Tensor], Any] | None, classes: Mapping[str, bool] | None) -> AnyOf:
    """Return a detector's subject that runs by `forward`, if given, with the names of its `classes`, if given."""
    if forward is not None:
        subject = replace(subject, predict=lambda batch: forward(batch["image"]), reading=Reading())
    return subject if classes is None else replace(subject, head=subject.head._replace(classes=classes))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the weights; the CPU for a model without any."""
    return next((each.device for each in model.parameters() if each.device.type != "meta"), torch.device("cpu"))
