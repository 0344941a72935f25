"""A batch of clips explained: what the detector said, which frames it came from, and where in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...base.files import write_whole
from ...engine.clips.maps import ClipMaps, share_of_frames
from ...judge.time import ClipMargins, OrderTest, cost_of_frames, order_test
from ..explanation import SHOWN, Explanation

if TYPE_CHECKING:
    from ...drawing.batch_images import DrawnImage

HOTTEST = 3  # frames that a printed explanation names


@dataclass(frozen=True, repr=False, kw_only=True)
class ClipExplanation(Explanation):
    """As `Explanation`, of clips: `images` (B, T, 3, H, W), `heatmap` (B, T, H, W) with one scale for each clip.

    `explanation.maps` has the raw and the signed maps (B, t, h, w), with the layer's own time steps;
    `explanation.time` what each frame adds to them. `explanation.check()` says whether a map's hottest frames matter,
    four forward passes a clip. `margins`: clips → the detector's fake − real; `frames_apart` → `frame_logits`.
    """

    ARRAYS: ClassVar[tuple[str, ...]] = (*Explanation.ARRAYS, "time")
    margins: ClipMargins
    frames_apart: Callable[[Tensor], Tensor]

    @property
    def time(self) -> Tensor:
        """(B, T): of the only map, the signed sum of each frame; their sum is the map's. InputError for several."""
        return self.clip_maps(self.maps.only).time

    @property
    def shares(self) -> Tensor:
        """(B, T) in [0, 1]: each frame's share of the evidence for the score, by the only map."""
        return share_of_frames(self.time)

    def frame_logits(self) -> Tensor:
        """(B, T, K): each frame's own logits, where the decision is their mean (STIL). InputError where it is not."""
        return self.frames_apart(self.images)

    def cost(self) -> Tensor:
        """(B, T) float32: how far fake − real falls when a frame is replaced by the one beside it. T passes a clip."""
        return cost_of_frames(self.margins, self.images)

    def order_test(self, videos: Sequence[Hashable] | None = None) -> OrderTest:
        """Whether the detector reads the order of these clips' frames; `videos`: of each, else every clip is one."""
        return order_test(self.margins, self.images, range(len(self.images)) if videos is None else videos)

    @staticmethod
    def clip_maps(maps: object) -> ClipMaps:
        """Maps of this explanation, which are all of clips."""
        assert isinstance(maps, ClipMaps), "the maps of a clip"
        return maps

    def __repr__(self) -> str:
        """A few lines: how the maps were made, each clip's probability and its hottest frames."""
        count, frames, _, height, width = self.images.shape
        how = "; ".join(f"{made.recipe.method} at {made.site}, backward {made.recipe.backward}" for made in self.made)
        clips = f"{count} clip{'s' * (count > 1)} of {frames} frames of {height} x {width}"
        lines = [f"Explanation of {clips}: {how}"]
        for i, probability in enumerate(self.prob_fake.tolist()[:SHOWN]):
            lines.append(f"  clip {i}: fake probability {probability:.3f}, explained: {self.target[i]}")
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN} more clips")
        for name, maps in self.layers.items():
            rows, columns = maps.grid
            shares = share_of_frames(self.clip_maps(maps).time)
            hottest = shares[0].topk(min(HOTTEST, frames)).indices.tolist()
            cells = f"{self.clip_maps(maps).times} x {rows} x {columns} cells"
            lines.append(f"  layer {name}: {cells}, hottest frames of clip 0: {', '.join(map(str, hottest))}")
        return "\n".join(lines)

    def pixels(self) -> Tensor:
        """The clips as uint8 RGB (B, T, 3, H, W), on their device."""
        frames = self.images.flatten(0, 1)
        from ...drawing.overlays import denormalised, stretched

        if self.look.mean is None or self.look.std is None:
            return stretched(frames).unflatten(0, self.images.shape[:2])
        return denormalised(frames, self.look.mean, self.look.std).unflatten(0, self.images.shape[:2])

    def save(self, folder: str | Path, prefix: str = "gradcam") -> list[Path]:
        """As `Explanation.save`, with mosaics of the frames, and `<prefix>_strip_<layer>_sample<i>.png` beside them.

        A strip is the frames in a row, with their places in the clip, under the curve of time.
        """
        from ...drawing.clips import ClipImage, strip
        from ...drawing.overlays import encode

        written = super().save(folder, prefix)
        for i, drawn in enumerate(self._drawn()):
            for layer in drawn.layers:
                assert isinstance(layer, ClipImage), "of a clip"
                path = Path(folder) / f"{prefix}_strip_{layer.name}_sample{i}.png"
                write_whole(path, encode(strip(layer, range(len(layer.time)))))
                written.append(path)
        return written

    def _drawn(self) -> list[DrawnImage]:
        from ...drawing.batch_images import DrawnImage
        from ...drawing.clips import clip_images, mosaic_of

        pixels = self.pixels()
        overlays = clip_images(pixels, self.layers, self.look.colormap, self.look.signed)
        return list(map(DrawnImage, map(mosaic_of, pixels), overlays, self.prob_fake.tolist(), self.target))

    def overlay(self) -> dict[str, Tensor]:
        """Layer → its maps over the frames, (B, T, H, W, 3) uint8 RGB on the CPU."""
        from ...drawing.overlays import overlay

        pixels, found = self.pixels(), {}
        for name, maps in self.layers.items():
            empty = maps.empty.repeat_interleave(pixels.shape[1])
            frames = overlay(pixels.flatten(0, 1).to(maps.raw.device), maps.normalised.flatten(0, 1), empty)
            found[name] = frames.unflatten(0, pixels.shape[:2]).cpu()
        return found
