"""Tokens that cover several frames each: what of a token each of its frames has made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...base.threads import hooked
from ..backward import BALANCED
from ..layers import name_in_tower
from ..recipe import RESIDUAL, Recipe
from ..tokens import Tokens
from ..towers.family import part
from ..towers.tower import Tower
from .families import VideoTransformer
from .grid import ClipGrid

LINEAR = ("gradcam", "gradcam3d", "hirescam", "layercam")  # their maps are linear in the activations


def tubelets_of(tower: Tower, recipe: Recipe, layer: str) -> nn.Conv3d | None:
    """The convolution whose tokens a recipe reads at `layer` as they came, each of several frames; None if not.

    That is what the first block reads. The balanced rule alone shares a score out, and so can share it among frames.
    """
    family = tower.family
    if not isinstance(family, VideoTransformer) or recipe.method not in LINEAR:
        return None
    if (recipe.backward, recipe.site) != (BALANCED, RESIDUAL) or name_in_tower(tower, layer) != tower.blocks[0]:
        return None
    found = part(tower.module, family.patches)
    frames = found.stride[0] if isinstance(found, nn.Conv3d) else 1
    plain = frames > 1 and (found.kernel_size[0], found.padding[0], found.dilation[0]) == (frames, 0, 1)
    return found if plain else None


def of_frames(tokens: Tokens, grid: ClipGrid, projection: nn.Conv3d, read: Tensor) -> tuple[Tokens, ClipGrid]:
    """Tokens of tubelets (B, N, C) → what each frame has made of them, (B, C, T, h, w), and the grid of these.

    A convolution over a tubelet is a sum over its frames. What is of no frame, its bias and what tells the place of a
    token, is shared equally, so that the frames of a tubelet add up to its token.

    Args:
        projection: made the tokens of `read` (B, 3, T, H, W).
    """
    count, weight = projection.stride[0], projection.weight.detach()
    if grid.frames % count:  # the last ones are in no token
        return tokens, grid
    A, G = (grid.to_clip(tensor, len(read)) for tensor in tokens)
    how = (1, *projection.stride[1:]), (0, *projection.padding[1:]), (1, *projection.dilation[1:])
    with torch.autocast(A.device.type, enabled=False):
        own = [
            F.conv3d(read[:, :, i::count].to(weight), weight[:, :, i : i + 1], None, *how, projection.groups).to(A)
            for i in range(count)
        ]
    rest = (A - sum(own)) / count
    parts = torch.stack([one + rest for one in own], dim=3).flatten(2, 3)
    return Tokens(parts, G.repeat_interleave(count, dim=2)), replace(grid, times=grid.frames)


@contextmanager
def noted_inputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What `module` has read inside, one entry a run; none without a module."""
    found: list[Tensor] = []

    def note(key: str, module: nn.Module, inputs: Any) -> None:
        found.append(inputs[0].detach())

    with hooked([("", one) for one in (module,) if one is not None], note, before=True):
        yield found
