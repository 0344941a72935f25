"""The explanation of a batch: predictions, maps of every recipe, and ways to show and save them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..base.errors import InputError, did_you_mean
from ..base.files import made_folder, whole_file
from ..engine.completeness import Completeness
from ..engine.heads import Head, Prediction
from ..engine.maps import LayerMaps
from ..engine.real.exchange import Exchange
from ..engine.recipe import Recipe, layer_names, names_of
from ..judge.check import MapCheck
from ..judge.verdict import Choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..drawing.batch_images import DrawnImage

SHOWN = 8  # images that a printed explanation lists
UNTRAINED = "random weights: this detector was never trained, so its scores and maps mean nothing"


class DrawStyle(NamedTuple):
    """How to draw a batch. `mean` and `std` turn its images back into pixels; None if unknown."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colormap: str = "jet"
    signed: bool = False


UNKNOWN_STYLE = DrawStyle()


class RecipeMaps(NamedTuple):
    """The maps of one recipe: layer → its maps, in the order given.

    `site` is where the engine read a named block. In a network without patch tokens it reads every module's output, and
    `site` is "output". With "balanced", `completeness` says for each block, and for the layer "sum", whether the token
    contributions and bias terms add up to the score.
    """

    recipe: Recipe
    layers: Mapping[str, LayerMaps]
    site: str
    completeness: Mapping[str, Completeness]


class Maps(dict[str, LayerMaps]):
    """The maps by name, as in `Explanation.layers`. A single map's tensors are also attributes."""

    @property
    def only(self) -> LayerMaps:
        """Return the only map. Raises InputError if there are several."""
        if len(self) != 1:
            raise InputError(f"there are {len(self)} maps: name one of {', '.join(self)}")
        return next(iter(self.values()))

    @property
    def raw(self) -> Tensor:
        """The raw map, (B, h, w) ≥ 0 on the patch grid, before normalisation."""
        return self.only.raw

    @property
    def signed(self) -> Tensor:
        """The map before the ReLU, (B, h, w); negative values are evidence against the score."""
        return self.only.signed

    @property
    def normalised(self) -> Tensor:
        """The heatmap, (B, H, W) float32 in [0, 1], at the image's size."""
        return self.only.normalised

    @property
    def empty(self) -> Tensor:
        """Whether no patch stands out, (B,) bool."""
        return self.only.empty


@dataclass(frozen=True, repr=False, kw_only=True)
class Explanation:
    """The explanation of a batch. `prediction` is the detector's output from the same forward pass, detached.

    `explanation["hirescam"]` is a heatmap, (B, H, W) float32 in [0, 1]; a single map is also `explanation.heatmap`.
    `explanation.maps` holds raw and signed maps, and which are empty; `explanation.check()` says how reliable each map
    is.

    `head` says what the logits mean. `target` is each image's target ("fake", "real", "margin" or the name of a class).
    `images` (B, 3, H, W) are the given images, `look` says how to draw them. `choice`: how the map was chosen, if this
    call chose it. `untrained`: the detector has its initial weights, so nothing here means anything. With a bank,
    `evidence` (B, L, h, w) is each patch's contrast in each block: how much more it adds to the score than its nearest
    real patches. For a contrast map, `standard` (B, h, w) is the standardised contrast, averaged over the blocks.
    `one_per_layer`: each layer has its own recipe, and the map has the layer's name. `exchange` replaces patches for a
    check, if the forward pass has kept their tokens.
    `separates`: whether the detector separates real from fake, as found by `calibrate_gradcam` or a run.
    """

    KIND: ClassVar[str] = "image"
    ARRAYS: ClassVar[tuple[str, ...]] = ("raw", "signed", "normalised", "empty")  # of each map, in an .npz file
    prediction: Prediction
    head: Head
    target: list[str]
    made: tuple[RecipeMaps, ...]
    images: Tensor
    look: DrawStyle = UNKNOWN_STYLE
    choice: Choice | None = None
    untrained: bool = False
    evidence: Tensor | None = None
    standard: Tensor | None = None
    exchange: Exchange | None = None
    separates: bool = True
    one_per_layer: bool = False
    checker: Callable[[Explanation], dict[str, list[MapCheck]]] | None = None
    judged: Callable[[Explanation], dict[str, list[MapCheck]]] | None = None  # by the evidence alone

    # ------------------------------------------------------------------------------------------------------ prediction

    @property
    def logits(self) -> Tensor:
        """The detector's logits, (B, K); if there are two, real and fake."""
        return self.prediction["cls"]

    @property
    def real_and_fake(self) -> Tensor:
        """The scores for real and for fake, (B, 2); with two logits, the logits."""
        return self.head.real_and_fake(self.logits)

    @property
    def prob_fake(self) -> Tensor:
        """The probability of fake, (B,) in [0, 1]."""
        return self.prediction["prob"]

    # ------------------------------------------------------------------------------------------------------------ maps

    @property
    def recipe(self) -> Recipe:
        """The recipe of the maps, or the first of several."""
        return self.made[0].recipe

    @property
    def method(self) -> str:
        """The method of the first recipe."""
        return self.recipe.method

    @property
    def backward(self) -> str:
        """The backward rule of the first recipe."""
        return self.recipe.backward

    @property
    def site(self) -> str:
        """The site of the first recipe."""
        return self.made[0].site

    @property
    def completeness(self) -> Mapping[str, Completeness]:
        """The completeness of the first recipe, by layer; see `RecipeMaps`."""
        return self.made[0].completeness

    @cached_property
    def entries(self) -> dict[str, tuple[RecipeMaps, str]]:
        """Each map's name → its recipe and its layer."""
        if len(self.made) == 1:
            return {layer: (self.made[0], layer) for layer in self.made[0].layers}
        every = [(made, layer) for made in self.made for layer in made.layers]
        names = names_of([(made.recipe, layer) for made, layer in every], self.one_per_layer)
        return dict(zip(names, every, strict=True))

    @cached_property
    def layers(self) -> dict[str, LayerMaps]:
        """The maps by name: with one recipe the layer as given; with several the method, or method and layer."""
        return {name: made.layers[layer] for name, (made, layer) in self.entries.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """Each map's name → its `Recipe.kind`."""
        return {name: made.recipe.kind for name, (made, _) in self.entries.items()}

    @property
    def maps(self) -> Maps:
        """The maps by name; a single map also as `maps.raw`, `maps.signed`, `maps.empty`."""
        return Maps(self.layers)

    @property
    def heatmap(self) -> Tensor:
        """The only map, (B, H, W) float32 in [0, 1], on the model's device. Raises InputError if there are several."""
        return self.maps.normalised

    def __getitem__(self, name: Any) -> Tensor:
        """Return the heatmaps, (B, H, W) float32 in [0, 1], of a method, a layer, a recipe, or a name in `layers`.

        Raises InputError if there is no such map, or more than one.
        """
        if isinstance(name, str) and name in self.layers:
            return self.layers[name].normalised
        found = [key for key, (made, layer) in self.entries.items() if _is_meant(name, made, layer)]
        if len(found) == 1:
            return self.layers[found[0]].normalised
        known = ", ".join(self.layers)
        if found:
            raise InputError(f"{name!r} matches {len(found)} maps: name one of {', '.join(found)}")
        raise InputError(f"no map {str(name)!r}; {did_you_mean(str(name), self.layers)}available: {known}")

    def verdicts(self) -> dict[str, list[MapCheck]]:
        """Judge each map by the contrast with real images, without a forward pass: name → one verdict per image.

        Empty without a bank, and for target "both".
        """
        return self.judged(self) if self.judged else {}

    def check(self) -> dict[str, list[MapCheck]]:
        """Check how reliable each map is: name → a verdict with its figures per image.

        It takes two forward passes per image, and computes further maps for comparison. Raises InputError for target
        "both".
        """
        if self.checker is None or "both" in self.target:
            raise InputError("maps of target 'both' or method 'transplant' cannot be checked: explain one class")
        return self.checker(self)

    # ---------------------------------------------------------------------------------------------------- seen and kept

    def __repr__(self) -> str:
        """Return a few lines: recipes, each image's or clip's probability, each layer's strength."""
        (count, *frames), (height, width) = self.images.shape[:-3], self.images.shape[-2:]
        how = "; ".join(f"{made.recipe.method} at {made.site}, backward {made.recipe.backward}" for made in self.made)
        size = "".join(f"{number} frames of " for number in frames) + f"{height} x {width}"
        lines = [f"Explanation of {count} {self.KIND}{'s' * (count > 1)} of {size}: {how}"]
        for i, probability in enumerate(self.prob_fake.tolist()[:SHOWN]):
            lines.append(f"  {self.KIND} {i}: P(fake) {probability:.3f}, heatmap for class: {self.target[i]}")
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN} more {self.KIND}s")
        lines += [f"  layer {name}: {self._strength_of(maps)}" for name, maps in self.layers.items()]
        if self.untrained:
            lines.append(f"  {UNTRAINED}")
        return "\n".join(lines)

    def _strength_of(self, maps: LayerMaps) -> str:
        """Describe the maps of a layer for `repr`."""
        count, (rows, columns), empty = len(maps.raw), maps.grid, int(maps.empty.sum())
        peaks = maps.raw.flatten(1).amax(dim=1)
        lowest = f"{float(peaks.min()):.3g} to " if count > 1 else ""
        said = f", {empty} of {count} maps empty" if empty else ""
        return f"{rows} x {columns} patches, raw maximum {lowest}{float(peaks.max()):.3g}{said}"

    def pixels(self) -> Tensor:
        """Return the images as uint8 RGB (B, 3, H, W) on their device.

        If no mean is known, each image is scaled from its own minimum and maximum.
        """
        from ..drawing.overlays import denormalise, stretch_range  # needs OpenCV, which maps do not

        images = self.images.flatten(0, -4)  # of clips, the frames
        if self.look.mean is None or self.look.std is None:
            pixels = stretch_range(images)
        else:
            pixels = denormalise(images, self.look.mean, self.look.std)
        return pixels.unflatten(0, self.images.shape[:-3])

    def overlay(self) -> dict[str, Tensor]:
        """Blend the maps over the images: layer → (B, H, W, 3) uint8 RGB on the CPU. An empty map is not coloured."""
        drawn = self._drawn()
        return {
            name: torch.stack([torch.from_numpy(one.layers[i].overlay) for one in drawn])
            for i, name in enumerate(self.layers)
        }

    def show(self) -> Figure:
        """Draw a matplotlib figure: one row per image, the original and each layer's overlay.

        Raises InputError if matplotlib is missing.
        """
        from ..drawing.batch_images import batch_figure

        return batch_figure(self._drawn(), UNTRAINED if self.untrained else "")

    def save(self, folder: str | Path, prefix: str = "gradcam") -> list[Path]:
        """Write overlays and comparisons as PNGs. Return their paths.

        For each image i: `<prefix>_<layer>_sample<i>.png` and `<prefix>_comparison_sample<i>.png`. Raises InputError
        for a prefix that cannot be part of a file name, and for a folder that cannot be created.
        """
        from ..drawing.batch_images import save_batch

        return save_batch(Path(folder), prefix, self._drawn(), UNTRAINED if self.untrained else "")

    def to_npz(self, path: str | Path) -> Path:
        """Write all numbers to an .npz file, creating its folder. Return its path.

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
        place = made_folder(Path(path).parent) / Path(path).name
        with whole_file(place) as file:
            np.savez_compressed(file, **arrays)
        return place

    def _drawn(self) -> list[DrawnImage]:
        from ..drawing.batch_images import DrawnImage
        from ..drawing.overlays import layer_images

        pixels = self.pixels()
        device = next(iter(self.layers.values())).normalised.device
        overlays = layer_images(pixels.to(device), self.layers, self.look.colormap, self.look.signed, kinds=self.kinds)
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return list(map(DrawnImage, arrays, overlays, self.prob_fake.tolist(), self.target))


def _is_meant(name: Any, made: RecipeMaps, layer: str) -> bool:
    """Tell whether `name` means this map: by its recipe, method, layer, or the layer's number."""
    if isinstance(name, Recipe):
        same = (name.method, name.site, name.backward) == (made.recipe.method, made.recipe.site, made.recipe.backward)
        return same and (not name.layers or layer in name.layers)
    return name in (made.recipe.method, layer) or (not isinstance(name, str) and layer_names(name) == (layer,))
