"""A batch explained: what the detector said, the maps of every recipe, and ways to look at them and keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..base.errors import InputError, did_you_mean
from ..base.files import whole_file
from ..engine.completeness import Completeness
from ..engine.heads import Head, Prediction
from ..engine.maps import LayerMaps
from ..engine.real.exchange import Exchange
from ..engine.recipe import Recipe, layer_names
from ..judge.check import MapCheck
from ..judge.verdict import Choice
from .asking.names import names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..drawing.batch_images import DrawnImage

SHOWN = 8  # images that a printed explanation lists
UNTRAINED = "random weights: this detector was never trained, its scores and maps mean nothing"


class Look(NamedTuple):
    """How a batch is drawn. `mean` and `std` turn its images back into pixels; None where they are not known."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colormap: str = "jet"
    signed: bool = False


UNKNOWN_LOOK = Look()


class RecipeMaps(NamedTuple):
    """The maps of one recipe: layer → its maps, in the order given.

    `site` is where a block's name was read; "output" in a network without patch tokens, of which every module is read
    there. With "balanced", `completeness` says of each layer that is a block, and of "sum", whether its shares add up.
    """

    recipe: Recipe
    layers: Mapping[str, LayerMaps]
    site: str
    completeness: Mapping[str, Completeness]


class Maps(dict[str, LayerMaps]):
    """The maps by name, as `Explanation.layers`; with one map its tensors can be had from here."""

    @property
    def only(self) -> LayerMaps:
        """The one map. Raises InputError where there are several."""
        if len(self) != 1:
            raise InputError(f"there are {len(self)} maps: name one of {', '.join(self)}")
        return next(iter(self.values()))

    @property
    def raw(self) -> Tensor:
        """(B, h, w) ≥ 0, on the patch grid, before normalising."""
        return self.only.raw

    @property
    def signed(self) -> Tensor:
        """(B, h, w): before the ReLU; below 0 where a patch speaks against the score."""
        return self.only.signed

    @property
    def normalised(self) -> Tensor:
        """(B, H, W) float32 in [0, 1], at the image's size."""
        return self.only.normalised

    @property
    def empty(self) -> Tensor:
        """(B,) bool: no patch stands out."""
        return self.only.empty


@dataclass(frozen=True, repr=False, kw_only=True)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `explanation["hirescam"]` is (B, H, W) float32 in [0, 1]; with one map `explanation.heatmap` is the same.
    `explanation.maps` has the raw and the signed maps, and which are empty; `explanation.check()` says how far each map
    can be relied on.

    `head` says what the logits mean. `target` names what each image's map explains ("fake", "real", "margin" or the
    name of a class). `images` (B, 3, H, W) are those that were explained, as they were given; `look` is how they are
    drawn. `choice`: how the map was chosen, where this call chose it. `untrained`: the detector has the weights it was
    built with, so that nothing here means anything. `evidence` (B, L, h, w), where there is a bank: what each patch
    adds to the score compared with its nearest real ones, block by block; `standard` (B, h, w): the same in units of
    how much these differ, averaged, where a contrast map was made. `one_per_layer`: each layer has a recipe of its
    own, and names its map. `exchange`: what a check exchanges patches by, where the pass has seen it. `separates`:
    whether the detector tells real from fake at all, as far as `calibrate_gradcam` or a run has seen.
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ("raw", "signed", "normalised", "empty")  # of each map, in a file
    prediction: Prediction
    head: Head
    target: list[str]
    made: tuple[RecipeMaps, ...]
    images: Tensor
    look: Look = UNKNOWN_LOOK
    choice: Choice | None = None
    untrained: bool = False
    evidence: Tensor | None = None
    standard: Tensor | None = None
    exchange: Exchange | None = None
    separates: bool = True
    one_per_layer: bool = False
    checker: Callable[[Explanation], dict[str, list[MapCheck]]] | None = None
    judged: Callable[[Explanation], dict[str, list[MapCheck]]] | None = None  # as `checker`, by the evidence alone

    # ------------------------------------------------------------------------------------------------------ prediction

    @property
    def logits(self) -> Tensor:
        """(B, K): those of the detector; with two, real and fake."""
        return self.prediction["cls"]

    @property
    def real_and_fake(self) -> Tensor:
        """(B, 2): the scores for real and for fake, whatever the head; with two logits the logits themselves."""
        return self.head.real_and_fake(self.logits)

    @property
    def prob_fake(self) -> Tensor:
        """(B,) in [0, 1]: the probability of fake."""
        return self.prediction["prob"]

    # ------------------------------------------------------------------------------------------------------------ maps

    @property
    def recipe(self) -> Recipe:
        """How the maps were made; of several recipes the first."""
        return self.made[0].recipe

    @property
    def method(self) -> str:
        """Of the first recipe."""
        return self.recipe.method

    @property
    def backward(self) -> str:
        """What the gradient of the first recipe held constant."""
        return self.recipe.backward

    @property
    def site(self) -> str:
        """Where the first recipe read a block."""
        return self.made[0].site

    @property
    def completeness(self) -> Mapping[str, Completeness]:
        """Of the first recipe, by layer, see `RecipeMaps`."""
        return self.made[0].completeness

    @cached_property
    def entries(self) -> dict[str, tuple[RecipeMaps, str]]:
        """The name of each map → its recipe, and its layer there."""
        every = [(made, layer) for made in self.made for layer in made.layers]
        names = names_of([(made.recipe, layer) for made, layer in every], self.one_per_layer)
        return dict(zip(names, every, strict=True))

    @cached_property
    def layers(self) -> dict[str, LayerMaps]:
        """Every map by its name: of one recipe the layer's, as it was given; of several the method's, or both."""
        return {name: made.layers[layer] for name, (made, layer) in self.entries.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """Of each map by name its `Recipe.kind`."""
        return {name: made.recipe.kind for name, (made, _) in self.entries.items()}

    @property
    def maps(self) -> Maps:
        """As `layers`; with one map also `maps.raw`, `maps.signed`, `maps.empty`."""
        return Maps(self.layers)

    @property
    def heatmap(self) -> Tensor:
        """(B, H, W) float32 in [0, 1], on the model's device. Raises InputError where there are several maps."""
        return self.maps.normalised

    def __getitem__(self, name: Any) -> Tensor:
        """The heatmaps (B, H, W) in [0, 1] of a method, a layer, a recipe, or a name in `layers`.

        Raises InputError where there is no such map, or more than one.
        """
        if isinstance(name, str) and name in self.layers:
            return self.layers[name].normalised
        found = [key for key, (made, layer) in self.entries.items() if _is_meant(name, made, layer)]
        if len(found) == 1:
            return self.layers[found[0]].normalised
        known = ", ".join(self.layers)
        if found:
            raise InputError(f"{name!r} has {len(found)} maps here: name one of {', '.join(found)}")
        raise InputError(
            f"there is no map {str(name)!r} here; {did_you_mean(str(name), self.layers)}there are: {known}"
        )

    def verdicts(self) -> dict[str, list[MapCheck]]:
        """How far each map can be relied on, by the contrast with real images: name → a verdict for each image.

        Asks the model nothing, so it costs next to nothing. Empty without a bank, and for target "both".
        """
        return self.judged(self) if self.judged else {}

    def check(self) -> dict[str, list[MapCheck]]:
        """How far each map can be relied on: name → a verdict with its figures for each image.

        Asks the model: two forward passes an image, and the maps that each is compared with. Raises InputError for maps
        of both classes at once (target "both"), which have no verdict.
        """
        if self.checker is None or "both" in self.target:
            raise InputError("maps of target 'both' or of method 'transplant' are not checked: explain one class")
        return self.checker(self)

    # ---------------------------------------------------------------------------------------------------- seen and kept

    def __repr__(self) -> str:
        """A few lines: how the maps were made, each image's probability, each layer's strength."""
        count, _, height, width = self.images.shape
        how = "; ".join(f"{made.recipe.method} at {made.site}, backward {made.recipe.backward}" for made in self.made)
        lines = [f"Explanation of {count} image{'s' * (count > 1)} of {height} x {width}: {how}"]
        for i, probability in enumerate(self.prob_fake.tolist()[:SHOWN]):
            lines.append(f"  image {i}: fake probability {probability:.3f}, explained: {self.target[i]}")
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN} more images")
        for name, maps in self.layers.items():
            rows, columns = maps.grid
            peaks = maps.raw.flatten(1).amax(dim=1)
            range_of = (
                f"{float(peaks.min()):.3g} to {float(peaks.max()):.3g}" if count > 1 else f"{float(peaks[0]):.3g}"
            )
            empty = int(maps.empty.sum())
            said = f", {empty} of {count} maps empty" if empty else ""
            lines.append(f"  layer {name}: {rows} x {columns} patches, raw maximum {range_of}{said}")
        if self.untrained:
            lines.append(f"  {UNTRAINED}")
        return "\n".join(lines)

    def pixels(self) -> Tensor:
        """The images as uint8 RGB (B, 3, H, W), on their device; stretched to their range where `look` has no mean."""
        from ..drawing.overlays import denormalised, stretched  # OpenCV, which the maps alone do not need

        if self.look.mean is None or self.look.std is None:
            return stretched(self.images)
        return denormalised(self.images, self.look.mean, self.look.std)

    def overlay(self) -> dict[str, Tensor]:
        """Layer → its maps over the images, (B, H, W, 3) uint8 RGB on the CPU; an empty map leaves the image plain."""
        drawn = self._drawn()
        return {
            name: torch.stack([torch.from_numpy(one.layers[i].overlay) for one in drawn])
            for i, name in enumerate(self.layers)
        }

    def show(self) -> Figure:
        """A matplotlib figure: one row per image, the original and each layer's overlay. InputError without it."""
        from ..drawing.batch_images import batch_figure

        return batch_figure(self._drawn(), UNTRAINED if self.untrained else "")

    def save(self, folder: str | Path, prefix: str = "gradcam") -> list[Path]:
        """Write overlays and comparisons as PNGs; returns their paths.

        For each image i: `<prefix>_<layer>_sample<i>.png` and `<prefix>_comparison_sample<i>.png`. Raises InputError
        for a prefix that is no part of a file's name.
        """
        from ..drawing.batch_images import save_batch

        return save_batch(Path(folder), prefix, self._drawn(), UNTRAINED if self.untrained else "")

    def to_npz(self, path: str | Path) -> Path:
        """Write all numbers as NumPy reads them; returns the path.

        `logits` (B, K), `prob_fake` (B,), `target` (B,) strings, `layers` (L,) their names, and for each layer
        `<layer>/raw`, `<layer>/signed` (B, h, w), `<layer>/normalised` (B, H, W) and `<layer>/empty` (B,).
        """
        import numpy as np

        if Path(path).suffix != ".npz":
            raise InputError(f"{path}: give a name that ends in .npz")
        arrays: dict[str, Any] = {
            "logits": self.logits.float().cpu().numpy(),
            "prob_fake": self.prob_fake.float().cpu().numpy(),
            "target": np.array(self.target),
            "layers": np.array(list(self.layers)),
        }
        for name, maps in self.layers.items():
            for kind in self.ARRAYS:
                arrays[f"{name}/{kind}"] = getattr(maps, kind).cpu().numpy()
        with whole_file(Path(path)) as file:
            np.savez_compressed(file, **arrays)
        return Path(path)

    def _drawn(self) -> list[DrawnImage]:
        from ..drawing.batch_images import DrawnImage
        from ..drawing.overlays import layer_images

        pixels = self.pixels()
        device = next(iter(self.layers.values())).normalised.device
        overlays = layer_images(pixels.to(device), self.layers, self.look.colormap, self.look.signed, kinds=self.kinds)
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return list(map(DrawnImage, arrays, overlays, self.prob_fake.tolist(), self.target))


def _is_meant(name: Any, made: RecipeMaps, layer: str) -> bool:
    """Whether `name` means that map: by its recipe, its method, its layer, or the layer's number."""
    if isinstance(name, Recipe):
        same = (name.method, name.site, name.backward) == (made.recipe.method, made.recipe.site, made.recipe.backward)
        return same and (not name.layers or layer in name.layers)
    return name in (made.recipe.method, layer) or (not isinstance(name, str) and layer_names(name) == (layer,))
