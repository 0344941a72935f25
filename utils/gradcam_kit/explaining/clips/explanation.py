"""The explanation of a batch of clips: predictions, and maps in time and space."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...base.files import write_whole
from ...engine.clips.maps import ClipMaps, share_of_frames
from ...engine.maps import LayerMaps
from ...judge.clips.time import ClipMargins, OrderTest, RealClips, cost_of_frames, order_test
from ...judge.clips.windows import cost_of_windows
from ..explanation import Explanation

if TYPE_CHECKING:
    from ...drawing.batch_images import DrawnImage
    from ...drawing.clips import ClipImage

HOTTEST = 3  # frames that `repr` names


@dataclass(frozen=True, repr=False, kw_only=True)
class ClipExplanation(Explanation):
    """The explanation of clips: `images` (B, T, 3, H, W), `heatmap` (B, T, H, W) in [0, 1], one scale per clip.

    `explanation.maps` holds raw and signed maps (B, t, h, w) at the layer's own time steps, `explanation.time` each
    frame's share. `explanation.check()` tells whether a map's hottest frames matter, with four forward passes per clip.
    `margins`: clips → fake − real; `frames_apart`: clips → `frame_logits`. `reals`: the real clips that these were made
    from, if the batch holds them: they replace frames in `check` and `cost`.
    """

    KIND: ClassVar[str] = "clip"
    ARRAYS: ClassVar[tuple[str, ...]] = (*Explanation.ARRAYS, "time")
    margins: ClipMargins
    frames_apart: Callable[[Tensor], Tensor]
    reals: RealClips | None = None

    @property
    def time(self) -> Tensor:
        """The signed sum of the only map over each frame, (B, T). Raises InputError if there are several maps."""
        return self.clip_maps(self.maps.only).time

    @property
    def shares(self) -> Tensor:
        """Each frame's share of the evidence for the score by the only map, (B, T) in [0, 1]."""
        return share_of_frames(self.time)

    def frame_logits(self) -> Tensor:
        """Return each frame's own logits (B, T, K), if the decision is their mean (STIL); else raise InputError."""
        return self.frames_apart(self.images)

    def cost(self) -> Tensor:
        """Measure the drop of fake − real if a frame is replaced: (B, T) float32, T passes per clip.

        The frame of the real clip replaces it, if known, else a neighbour.
        """
        return cost_of_frames(self.margins, self.images, self.reals)

    def cost_of_windows(self) -> Tensor:
        """Measure which frames' order matters: (B, T) float32, the more the larger; up to 6 T passes per clip.

        Windows of up to six neighbouring frames are replaced by those of the real clip, if known, else sorted by
        likeness. The value is the mean drop of fake − real over the windows with the frame, less that over the others.
        """
        return cost_of_windows(self.margins, self.images, self.reals)

    def order_test(self, videos: Sequence[Hashable] | None = None) -> OrderTest:
        """Test whether the detector uses the order of frames. `videos`: each clip's video; None: one per clip."""
        return order_test(self.margins, self.images, range(len(self.images)) if videos is None else videos)

    @staticmethod
    def clip_maps(maps: object) -> ClipMaps:
        """Narrow the type of this explanation's maps to ClipMaps."""
        assert isinstance(maps, ClipMaps), "the maps of a clip"
        return maps

    def _strength_of(self, maps: LayerMaps) -> str:
        (rows, columns), of_clips = maps.grid, self.clip_maps(maps)
        shares = share_of_frames(of_clips.time)[0]
        hottest = shares.topk(min(HOTTEST, len(shares))).indices.tolist()
        frames = ", ".join(map(str, hottest))
        return f"{of_clips.times} x {rows} x {columns} cells, hottest frames of clip 0: {frames}"

    def save(self, folder: str | Path, prefix: str = "gradcam") -> list[Path]:
        """Write the files of `Explanation.save`, with mosaics of frames, and `<prefix>_strip_<layer>_sample<i>.png`.

        A strip shows the frames in a row, with their positions in the clip, under the curve of time.
        """
        from ...drawing.clips import strip
        from ...drawing.overlays import encode

        written = super().save(folder, prefix)
        for i, of_clip in enumerate(self._clip_images()):
            for layer in of_clip:
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
        """Blend the maps over the frames: layer → (B, T, H, W, 3) uint8 RGB on the CPU. Empty maps stay plain."""
        drawn = self._clip_images()
        return {
            name: torch.stack([torch.from_numpy(of_clip[i].frames) for of_clip in drawn])
            for i, name in enumerate(self.layers)
        }

    def _clip_images(self) -> list[list[ClipImage]]:
        """Return the drawn layers of each clip."""
        from ...drawing.clips import ClipImage

        return [[layer for layer in drawn.layers if isinstance(layer, ClipImage)] for drawn in self._drawn()]
