"""A batch explained: what the detector said, the maps of every layer, and ways to look at them and keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.files import whole_file
from ..engine.completeness import Completeness
from ..engine.heads import Head, Prediction
from ..engine.maps import LayerMaps
from ..judge.verdict import Choice

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


@dataclass(frozen=True, repr=False)
class Explanation:
    """A batch explained: `prediction` is the detector's own output of the same forward pass, detached.

    `head` says what its logits mean. `target` names what each image's map explains ("fake", "real", "margin" or the
    name of a class); `layers` maps the layer's name, as it was given, to its maps, in the order given. `site` is where
    a block's name was read; "output" in a network without patch tokens, of which every module is read there. `backward`
    is what the gradient took for constant; with "balanced", `completeness` says of each layer that is a block, and of
    "sum", whether its shares add up. `images` (B, 3, H, W) are those that were explained, as they were given; `look` is
    how they are drawn. `choice`: how the map was chosen, where this call chose it. `untrained`: the detector has the
    weights it was built with, so that nothing here means anything.
    """

    prediction: Prediction
    head: Head
    target: list[str]
    layers: dict[str, LayerMaps]
    method: str
    site: str
    backward: str
    completeness: Mapping[str, Completeness]
    images: Tensor
    look: Look = UNKNOWN_LOOK
    choice: Choice | None = None
    untrained: bool = False

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

    def __repr__(self) -> str:
        """A few lines: how the maps were made, each image's probability, each layer's strength."""
        count, _, height, width = self.images.shape
        how = f"{self.method} at {self.site}, backward {self.backward}"
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
        overlays = [[torch.from_numpy(layer.overlay) for layer in one.layers] for one in drawn]
        return {
            name: torch.stack(of_layer)
            for name, of_layer in zip(self.layers, map(list, zip(*overlays, strict=True)), strict=True)
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
            for kind in ("raw", "signed", "normalised", "empty"):
                arrays[f"{name}/{kind}"] = getattr(maps, kind).cpu().numpy()
        with whole_file(Path(path)) as file:
            np.savez_compressed(file, **arrays)
        return Path(path)

    def _drawn(self) -> list[DrawnImage]:
        from ..drawing.batch_images import DrawnImage
        from ..drawing.overlays import layer_images

        pixels = self.pixels()
        device = next(iter(self.layers.values())).normalised.device
        overlays = layer_images(pixels.to(device), self.layers, self.look.colormap, self.look.signed)
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return list(map(DrawnImage, arrays, overlays, self.prob_fake.tolist(), self.target))
