"""The real frames that fakes were made from, where a dataset has them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.frame import DataSettings, Frame
from ..data.frame_paths import read_bytes
from ..data.images import UnreadableImage, decode_image
from ..data.readers import read_dataset
from ..judge.transplant import blurred

SAME_SCENE = 0.97  # of `likeness`: aligned faces of two people reach .966, a frame and its fake .99
THREADS = 8  # that decode


class RealFrames(NamedTuple):
    """The real counterpart of each of N images."""

    pixels: Tensor  # (N, 3, R, R) uint8
    paired: Tensor  # (N,) bool: which images have one

    def in_clips(self, size: int) -> RealFrames:
        """Return those of clips of `size` frames each: (N, T, 3, R, R); a clip is paired if all of its frames are."""
        return RealFrames(self.pixels.unflatten(0, (-1, size)), self.paired.unflatten(0, (-1, size)).all(dim=1))


class RealCounterparts:
    """Finds a fake's counterpart: the same frame of its original real video, in the same dataset.

    `real_videos` lists the names that the real video may have; the frame has the same file name. The dataset is read
    once.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = replace(settings, frame_num=None)
        self._reals: dict[str, dict[tuple[str, str], str]] = {}  # dataset → video and file name → path

    def _reals_of(self, dataset: str) -> Mapping[tuple[str, str], str]:
        if dataset not in self._reals:
            reals = (frame for frame in read_dataset(dataset, self._settings) if frame.label == 0)
            self._reals[dataset] = {(real.video, posixpath.basename(real.path)): real.path for real in reals}
        return self._reals[dataset]

    def path(self, fake: Frame) -> str | None:
        """Return the path of a fake's real counterpart, or None; a real frame has none."""
        if fake.label == 0:
            return None
        reals, file = self._reals_of(fake.dataset), posixpath.basename(fake.path)
        return next((reals[video, file] for video in real_videos(fake.video) if (video, file) in reals), None)

    def of(self, fakes: Sequence[Frame], images: Tensor) -> RealFrames:
        """Read the counterparts of N fakes with pixels `images` (N, 3, R, R) uint8; zero where there is none.

        A frame that cannot be read or shows another scene is no counterpart: some datasets give unrelated reals and
        fakes the same number.
        """
        pixels, resolution = torch.zeros_like(images), images.shape[-1]
        paired = torch.zeros(len(fakes), dtype=torch.bool)
        paths = [self.path(fake) for fake in fakes]
        if not any(paths):
            return RealFrames(pixels, paired)
        with ThreadPoolExecutor(THREADS) as pool:  # OpenCV decodes without Python's lock
            found = list(pool.map(partial(_decoded, resolution=resolution), paths))
        for i, image in enumerate(found):
            if image is not None:
                pixels[i], paired[i] = torch.from_numpy(image).permute(2, 0, 1), True
        paired &= likeness(pixels, images) >= SAME_SCENE
        pixels[~paired] = 0
        return RealFrames(pixels, paired)

    def references(self, frames: Sequence[Frame], pixels: Tensor) -> Tensor:
        """Return transplant's references for `frames`, uint8 like `pixels`: the counterpart, else a blurred copy."""
        reals = self.of(frames, pixels)
        copies = blurred(pixels.float()).round().to(torch.uint8)
        return torch.where(reals.paired.view(-1, 1, 1, 1), reals.pixels, copies)


def real_videos(fake: str) -> list[str]:
    """List the names that the real video of a fake may have.

    The fake's own; 000 for 000_003 (FaceForensics++); id0_0002 for id0_id16_0002 (Celeb-DF); 01__meeting for
    01_02__meeting__ABC (DeepFakeDetection).
    """
    named = [fake, fake.partition("_")[0]]
    if celeb_df := re.fullmatch(r"(id\d+)_id\d+_(\d+)", fake):
        named.append("_".join(celeb_df.groups()))
    if detection := re.fullmatch(r"(\d+)_\d+__(.+)__\w+", fake):
        named.append("__".join(detection.groups()))
    return named


def _decoded(path: str | None, resolution: int) -> np.ndarray | None:
    """Return the image, None without a path or if it cannot be read: users often have only the fakes."""
    try:
        return None if path is None else decode_image(read_bytes(path), resolution)
    except UnreadableImage:
        return None


def likeness(images: Tensor, others: Tensor) -> Tensor:
    """Return how similar the scenes of paired uint8 images (N, 3, R, R) are, (N,): 1 if equal, NaN for a flat image.

    It is the correlation of 16 x 16 grey values, without the quarter that differs most, as a forgery changes some.
    """
    grey = [F.adaptive_avg_pool2d(one.float().mean(dim=1, keepdim=True), 16).flatten(1) for one in (images, others)]
    apart = (grey[0] - grey[1]).abs()
    kept = apart <= apart.quantile(0.75, dim=1, keepdim=True)
    first, second = (torch.where(kept, one, torch.nan) for one in grey)
    first, second = (one - one.nanmean(dim=1, keepdim=True) for one in (first, second))
    return (first * second).nansum(dim=1) / ((first**2).nansum(dim=1) * (second**2).nansum(dim=1)).sqrt()
