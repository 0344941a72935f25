"""The kinds of network that read clips, and how a tensor of each lies in the clip.

Four shapes are known: 3-D convolutions (B, C, t, h, w); an image network that gets the frames as one batch (B·T, ...);
tokens of a video (B, N, C); and an image network that gets one picture of all frames, a thumbnail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ..frozen import Structure
from ..layers import LayerError
from ..towers import find_tower
from ..towers.attention import BlockAttention, HeldAttention, QueriesAndKeys
from ..towers.families import CNN, HF_VIT, NamedTransformer
from ..towers.family import part
from ..towers.tower import Tower
from .grid import FRAMES, HWT, THW, ClipGrid, ClipShape, thumbnail_grid
from .held import ProjectedByWeight

KEPT = "_gradcam_clip_tower"  # in the model's own __dict__, so that both go together
KNOWN = (
    "3-D convolutions; frames in the batch (B·T, ...); Hugging Face's VideoMAE, TimeSformer and X-CLIP; thumbnails of"
    " frames, whose module has thumbnail_rows"
)


@dataclass(frozen=True)
class VideoTransformer(NamedTransformer):
    """A transformer over the patches of a whole clip. `order` of its tokens: THW or HWT."""

    order: str = THW
    # Of a block that attends in time and in space by turns: its modules that return q or k, and those that return q, k
    # and v side by side.
    separate: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        stride = getattr(part(tower, self.patches), "stride", None)
        return None if stride is None else (int(stride[-2]), int(stride[-1]))

    def tubelet(self, tower: nn.Module) -> int:
        """Frames that one token covers."""
        convolution = part(tower, self.patches)
        return int(convolution.stride[0]) if isinstance(convolution, nn.Conv3d) else 1

    def attention(self, block: nn.Module) -> BlockAttention | None:
        return None if self.separate or self.packed else super().attention(block)

    def held_attention(self, block: nn.Module) -> HeldAttention | None:
        inner = part(block, "attention.attention")
        if hasattr(inner, "q_bias"):  # VideoMAE of transformers 4
            return ProjectedByWeight(inner, (inner.query, inner.key))
        if not (self.separate or self.packed):
            return self.attention(block)
        separate, packed = (tuple(part(block, path) for path in paths) for paths in (self.separate, self.packed))
        return None if None in (*separate, *packed) else QueriesAndKeys(separate, packed)


VIDEO_MAE = VideoTransformer(
    name="Hugging Face VideoMAE",
    signs="embeddings.patch_embeddings with a tubelet_size, and encoder.layer with layernorm_before",
    patches="embeddings.patch_embeddings.projection",
    blocks=("encoder.layer",),
    norms=("layernorm_before",),
    having=("attention",),
    needs=("embeddings.patch_embeddings.tubelet_size",),
    before=("embeddings.cls_token",),
    projections=HF_VIT.projections,
)
# `layernorm_before` reads the frames as a batch, (B·T, 1 + patches, C), behind the attention in time.
TIMESFORMER = VideoTransformer(
    name="Hugging Face TimeSformer",
    signs="embeddings.patch_embeddings.projection, and encoder.layer with temporal_attention",
    patches="embeddings.patch_embeddings.projection",
    blocks=("encoder.layer",),
    norms=("layernorm_before",),
    having=("temporal_attention",),
    before=("embeddings.cls_token",),
    order=HWT,
    packed=("temporal_attention.attention.qkv", "attention.attention.qkv"),
)
X_CLIP = VideoTransformer(
    name="Hugging Face X-CLIP",
    signs="embeddings.patch_embedding, and encoder.layers with message_attn",
    patches="embeddings.patch_embedding",
    blocks=("encoder.layers",),
    norms=("layer_norm1",),
    having=("message_attn",),
    before=("embeddings.class_embedding",),
    separate=tuple(f"{one}.{name}_proj" for one in ("message_attn", "self_attn") for name in "qk"),
)


class Volumes(CNN):
    """Any model with a 3-D convolution: its activations are (B, C, t, h, w), or (B, t, h, w, C)."""

    name = "3-D convolutional networks"
    signs = "an nn.Conv3d"

    def recognises(self, module: nn.Module) -> bool:
        return any(isinstance(inner, nn.Conv3d) for inner in module.modules())


VIDEO_FAMILIES = (X_CLIP, TIMESFORMER, VIDEO_MAE)
VOLUMES = Volumes()


def clip_tower_of(model: nn.Module) -> Tower:
    """The network inside `model` that reads clips, or their frames. Raises InputError where none is known."""
    kept: Tower | None = vars(model).get(KEPT)
    if kept is None or kept.model is not model or not kept.structure.still_holds():
        kept = _found(model)
        vars(model)[KEPT] = kept
    return kept


def _found(model: nn.Module) -> Tower:
    structure = Structure(model)
    for family in VIDEO_FAMILIES:
        for module in model.modules():
            if family.recognises(module):
                return Tower(model, module, structure, family)
    if VOLUMES.recognises(model):
        return Tower(model, model, structure, VOLUMES)
    return Tower(model, find_tower(model), structure)


def channels_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """What `module` has returned, (B, C, t, h, w) or (B, t, h, w, C), as the former.

    A transformer's blocks normalise their last axis, convolutions and their norms the second.
    """
    last = {inner.normalized_shape[-1] for inner in module.modules() if isinstance(inner, nn.LayerNorm)}
    first = {inner.num_features for inner in module.modules() if isinstance(inner, (nn.BatchNorm3d, nn.InstanceNorm3d))}
    is_last = tensor.shape[-1] in last and tensor.shape[1] not in first
    return tensor.permute(0, 4, 1, 2, 3) if is_last else tensor


def thumbnail_of(tower: Tower, frames: int) -> tuple[int, int] | None:
    """Rows and columns of frames in the picture that `tower` gets; None where no module has `thumbnail_rows`."""
    found = (getattr(module, "thumbnail_rows", None) for module in tower.structure.modules)
    rows = next((int(count) for count in found if isinstance(count, int) and count > 0), None)
    return None if rows is None or frames % rows else (rows, frames // rows)


def clip_grid(tower: Tower, layer: str, tensor: Tensor, clip: ClipShape) -> ClipGrid:
    """How the tensor of a layer lies in clips of that shape; its rows are clips or frames, its channels as `Tap` says.

    Raises LayerError for a tensor that has no cells in the clip.
    """
    shape = tuple(tensor.shape)
    fits = all(cells <= of for cells, of in zip(shape[2:], clip[1:], strict=False))
    if tensor.ndim == 5 and shape[0] == clip.clips and fits:
        return ClipGrid(frames=clip.frames, times=shape[2], rows=shape[3], columns=shape[4])
    if tensor.ndim in (3, 4):
        thumbnail = thumbnail_of(tower, clip.frames)
        if thumbnail is not None and shape[0] == clip.clips:
            return thumbnail_grid(_picture(layer, tensor, thumbnail, clip), thumbnail, clip.frames, layer)
        if shape[0] == clip.clips * clip.frames and (clip.frames > 1 or not isinstance(tower.family, VideoTransformer)):
            return _of_frames(tower, layer, tensor, clip)
        if shape[0] == clip.clips and tensor.ndim == 3 and isinstance(tower.family, VideoTransformer):
            return _of_tokens(tower, tower.family, layer, tensor, clip)
    raise LayerError(
        f"layer {layer!r} gives a tensor of shape {shape} for {clip.clips} clips of {clip.frames} frames, which has no"
        f" cell for each frame and place; known are {KNOWN}; name an earlier layer"
    )


def _of_frames(tower: Tower, layer: str, tensor: Tensor, clip: ClipShape) -> ClipGrid:
    if tensor.ndim == 4:
        return ClipGrid(
            frames=clip.frames, times=clip.frames, rows=tensor.shape[2], columns=tensor.shape[3], fold=FRAMES
        )
    grid = tower.grid(clip.height, clip.width)
    if grid is not None and grid.halvings:
        grid = grid.of_tokens(tensor.shape[1])
    before = None if grid is None else grid.prefix
    if grid is not None and before is None:
        before = tensor.shape[1] - grid.rows * grid.columns - grid.suffix
    if grid is None or before is None or not 0 <= before <= tensor.shape[1] - grid.rows * grid.columns:
        raise LayerError(
            f"layer {layer!r} gives {tensor.shape[1]} tokens per frame, which do not form a grid of patches"
        )
    return ClipGrid(
        frames=clip.frames, times=clip.frames, rows=grid.rows, columns=grid.columns, prefix=before, fold=FRAMES,
        covers=grid.covers,
    )  # fmt: skip


def _of_tokens(tower: Tower, family: VideoTransformer, layer: str, tensor: Tensor, clip: ClipShape) -> ClipGrid:
    grid = tower.grid(clip.height, clip.width)
    assert grid is not None, "a transformer has patches"
    times, prefix = clip.frames // family.tubelet(tower.module), tower.prefix or 0
    if tensor.shape[1] != prefix + times * grid.rows * grid.columns:
        raise LayerError(
            f"layer {layer!r} gives {tensor.shape[1]} tokens a clip, but {times} x {grid.rows} x {grid.columns} patches"
            f" and {prefix} before them are expected: name a block"
        )
    return ClipGrid(
        frames=clip.frames, times=times, rows=grid.rows, columns=grid.columns, order=family.order, prefix=prefix,
        covers=grid.covers,
    )  # fmt: skip


def _picture(layer: str, tensor: Tensor, thumbnail: tuple[int, int], clip: ClipShape) -> tuple[int, int]:
    """Rows and columns of cells of a thumbnail."""
    if tensor.ndim == 4:
        return tensor.shape[2], tensor.shape[3]
    cells, shape = tensor.shape[1], (thumbnail[0] * clip.height, thumbnail[1] * clip.width)
    rows = round(math.sqrt(cells * shape[0] / shape[1]))
    if not rows or cells % rows:
        raise LayerError(f"layer {layer!r} gives {cells} tokens, which do not form a grid of {thumbnail} frames")
    return rows, cells // rows
