"""The bank: patch tokens of images that the detector calls real, to compare other images' patches with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import LayerError

NEIGHBOURS = 10  # real tokens to compare a patch with: 3 to 30 work alike, and ten outvote an undetected fake
FEWEST_IMAGES = 4  # for a bank that the library makes by itself: with fewer, maps locate worse
MOST_IMAGES = 16  # of a bank: more are slower and locate hardly better
MOST_PATCHES = 64 * 64  # of an image in a bank: a finer grid is thinned out
LIKENESSES = 2**26  # compared at a time: 256 MiB; a grid of 128 x 128 would take 17 GB at once


@dataclass(frozen=True, slots=True)
class TokenBank:
    """Patch tokens of M real images.

    `tokens`: layer → (M, P, C) float16 on the model's device, P patches of each image. `videos`: the video of each
    image, so that no image is compared with frames of its own video.
    """

    tokens: Mapping[str, Tensor]
    videos: tuple[Hashable, ...]

    def nearest(self, layer: str, A: Tensor, videos: Sequence[Hashable] | None = None) -> Neighbours:
        """Find the NEIGHBOURS nearest real tokens of every patch of `A` (B, C, h, w).

        The distance is cosine, after subtracting each token's mean over channels. `videos`: the video of each image;
        tokens from an image's own video are skipped. Raises LayerError for a layer without tokens in the bank.
        """
        if layer not in self.tokens:
            raise LayerError(f"the bank has no tokens of layer {layer!r}; it has those of {', '.join(self.tokens)}")
        exact = torch.promote_types(A.dtype, torch.float32)
        real = self.tokens[layer].to(exact)
        keys, values = _direction(real).flatten(0, 1).T, real.flatten(0, 1)
        patches = A.detach().to(exact).flatten(2).transpose(1, 2)
        each, found = real.shape[1], []
        for i, image in enumerate(patches):
            own = [] if videos is None else [j for j, video in enumerate(self.videos) if video == videos[i]]
            nearest = []
            for some in _direction(image).split(max(1, LIKENESSES // keys.shape[1])):
                likeness = some @ keys
                for j in own:
                    likeness.narrow(1, j * each, each).fill_(-2.0)
                nearest.append(likeness.topk(min(NEIGHBOURS, likeness.shape[1]), dim=1).indices)
            found.append(torch.cat(nearest))
        return Neighbours(values, torch.stack(found), tuple(A.shape))

    @property
    def nbytes(self) -> int:
        """Return the tokens' size in memory, in bytes."""
        return sum(tokens.nbytes for tokens in self.tokens.values())


@dataclass(frozen=True)
class Neighbours:
    """The k nearest real tokens of each patch of (B, C, h, w): `indices` (B, h·w, k) into `values` (N, C)."""

    values: Tensor
    indices: Tensor
    shape: tuple[int, ...]

    @cached_property
    def mean(self) -> Tensor:
        """Return each patch's mean nearest token, (B, C, h, w)."""
        means = torch.stack([F.embedding_bag(near, self.values, mode="mean") for near in self.indices])
        return means.transpose(1, 2).reshape(self.shape)

    def along(self, G: Tensor) -> Tensor:
        """Return each neighbour's dot product with the patch's gradient `G` (B, C, h, w), as (B, k, h, w)."""
        directions = G.to(self.values.dtype).flatten(2).transpose(1, 2).unsqueeze(-1)
        products = [self.values[near] @ g for near, g in zip(self.indices, directions, strict=True)]  # image by image
        return torch.stack(products).squeeze(-1).transpose(1, 2).reshape(len(G), -1, *self.shape[2:])


def thinned(patches: Tensor) -> Tensor:
    """Return every k-th row and column of patches (B, C, h, w), so that an image has at most MOST_PATCHES."""
    step = 1
    while -(-patches.shape[2] // step) * -(-patches.shape[3] // step) > MOST_PATCHES:
        step += 1
    return patches[:, :, ::step, ::step]


def nearest_beside(A: Tensor, R: Tensor) -> Tensor:
    """Return, for each patch of `A` (B, C, h, w), the nearest token of `R` (B, C, h, w) at its place or next to it.

    `R` holds tokens of the real images from which the images of `A` were made. Their crops may differ by a few pixels;
    a patch's counterpart is then next to its own place.
    """
    rows, columns = R.shape[2:]
    directions, around = _channel_direction(A), F.pad(R, (1, 1, 1, 1), mode="replicate")
    nearest, best = R, (directions * _channel_direction(R)).sum(dim=1, keepdim=True)
    for down, right in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        other = around[:, :, down : down + rows, right : right + columns]
        likeness = (directions * _channel_direction(other)).sum(dim=1, keepdim=True)
        nearest, best = torch.where(likeness > best, other, nearest), torch.maximum(likeness, best)
    return nearest


def _channel_direction(tokens: Tensor) -> Tensor:
    return _direction(tokens.movedim(1, -1)).movedim(-1, 1)


def _direction(tokens: Tensor) -> Tensor:
    """(..., C) → the same without the mean over channels, at length 1."""
    return F.normalize(tokens - tokens.mean(dim=-1, keepdim=True), dim=-1)
