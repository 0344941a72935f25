"""The known families of networks: vision transformers by a table of names, and a few that need code."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .attention import AttentionModules, BlockAttention
from .family import Grid, TowerFamily, part, stride_of
from .fused_attention import TimmAttention, multihead_attention, torch_attention


@dataclass(frozen=True)
class NamedTransformer(TowerFamily):
    """A vision transformer whose parts have known names: dotted paths; the first existing one counts.

    Its tokens are (B, T, C): `before`, the patches, `after`.
    """

    name: str
    signs: str
    patches: str  # the convolution that cuts the image into patches, in the tower
    blocks: tuple[str, ...]  # the list of blocks, in the tower
    norms: tuple[str, ...]  # the first norm, in a block
    having: tuple[str, ...]  # what else a block has
    needs: tuple[str, ...] = ()  # what else the tower has, one of these
    before: tuple[str, ...] = ()  # tokens without a patch, (1, n, C) or one (C,), in the tower
    after: tuple[str, ...] = ()
    # Number of heads, q, k, v and output, in a block; otherwise PyTorch's own.
    projections: tuple[tuple[str, ...], ...] = ()
    rotary: str = ""  # the module that reads the rotation angles of q and k, in a block

    def recognises(self, module: nn.Module) -> bool:
        needed = not self.needs or any(part(module, path) is not None for path in self.needs)
        return needed and self.patch_size(module) is not None and bool(self._blocks(module))

    def _blocks(self, tower: nn.Module) -> str:
        """Return the path of the list of blocks; "" if there is none."""
        for path in self.blocks:
            blocks = part(tower, path)
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks):
                normed = any(part(blocks[0], norm) is not None for norm in self.norms)
                if normed and all(part(blocks[0], name) is not None for name in self.having):
                    return path
        return ""

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return stride_of(part(tower, self.patches))

    def prefix(self, tower: nn.Module) -> int | None:
        return self._count(tower, self.before)

    def suffix(self, tower: nn.Module) -> int:
        return self._count(tower, self.after) or 0

    def _count(self, tower: nn.Module, names: tuple[str, ...]) -> int | None:
        """Count these tokens; None if none of them exists."""
        tokens = [one for one in (part(tower, name) for name in names) if isinstance(one, Tensor)]
        return sum(one.shape[1] if one.ndim == 3 else 1 for one in tokens) if tokens else None

    def block_names(self, tower: nn.Module) -> list[str]:
        path = self._blocks(tower)
        return [f"{path}.{i}" for i in range(len(part(tower, path)))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return next(norm for norm in (part(block, name) for name in self.norms) if norm is not None)

    def attention(self, block: nn.Module) -> BlockAttention | None:
        for names in self.projections:
            heads, q, k, v, out = (part(block, name) for name in names)
            if heads and all(projection is not None for projection in (q, k, v, out)):
                return AttentionModules(int(heads), q, k, v, out, part(block, self.rotary))
        return None if self.projections else torch_attention(block)


def _names(within: str, heads: str, *projections: str) -> tuple[str, ...]:
    return tuple(f"{within}.{name}" for name in (heads, *projections))


# As transformers 4 and 5 build it: `CLIPVisionModel` itself in 5, its `vision_model` in 4. SigLIP's has no class token.
HF_CLIP = NamedTransformer(
    name="Hugging Face CLIP and SigLIP vision towers",
    signs="embeddings.patch_embedding, and encoder.layers with layer_norm1 and self_attn",
    patches="embeddings.patch_embedding",
    blocks=("encoder.layers",),
    norms=("layer_norm1",),
    having=("self_attn",),
    before=("embeddings.class_embedding",),
    projections=(_names("self_attn", "num_heads", "q_proj", "k_proj", "v_proj", "out_proj"),),
)
# With DeiT's distillation token, DINOv2's registers, YOLOS' detection tokens; as transformers 4 and 5 build them.
HF_VIT = NamedTransformer(
    name="Hugging Face ViT, DeiT, DINOv2 and YOLOS",
    signs="embeddings.patch_embeddings.projection, and encoder.layer or layers with layernorm_before or norm1",
    patches="embeddings.patch_embeddings.projection",
    blocks=("encoder.layer", "layers", "encoder.layers"),
    norms=("layernorm_before", "norm1"),
    having=("attention",),
    needs=("embeddings.cls_token", "embeddings.class_token"),
    before=("embeddings.cls_token", "embeddings.distillation_token", "embeddings.register_tokens"),
    after=("embeddings.detection_tokens",),
    projections=(
        _names("attention", "num_attention_heads", "q_proj", "k_proj", "v_proj", "o_proj"),
        _names(
            "attention",
            "attention.num_attention_heads",
            *(f"attention.{name}" for name in ("query", "key", "value")),
            "output.dense",
        ),
    ),
)
HF_DINOV3 = NamedTransformer(
    name="Hugging Face DINOv3",
    signs="embeddings.patch_embeddings, rope_embeddings, and layer with norm1 and attention",
    patches="embeddings.patch_embeddings",
    blocks=("model.layer", "layer"),
    norms=("norm1",),
    having=("attention.o_proj",),
    needs=("rope_embeddings",),
    before=("embeddings.cls_token", "embeddings.register_tokens"),
    projections=(_names("attention", "num_heads", "q_proj", "k_proj", "v_proj", "o_proj"),),
    rotary="attention",
)


class OpenAICLIP(NamedTransformer):
    """`visual` in OpenAI's `clip` and in open_clip; in the blocks, tokens are (T, B, C) unless it says otherwise."""

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        if not layer.startswith("transformer"):
            return 0
        if not layer.startswith("transformer.resblocks"):
            return None  # one package transposes the output inside `transformer`, the other after it
        batch_first = part(tower, "transformer.batch_first")
        if batch_first is None:
            batch_first = part(tower, "transformer.resblocks.0.attn.batch_first")
        return None if batch_first is None else int(not batch_first)


OPENAI_CLIP = OpenAICLIP(
    name="OpenAI clip and open_clip vision towers",
    signs="conv1, class_embedding, and transformer.resblocks with ln_1 and attn",
    patches="conv1",
    blocks=("transformer.resblocks",),
    norms=("ln_1",),
    having=("attn",),
    needs=("class_embedding",),
    before=("class_embedding",),
)


class TimmViT(NamedTransformer):
    """timm's ViT: also old versions, EVA, DINOv3, the Perception Encoder, and networks with the same pattern."""

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        if part(tower, "patch_embed.backbone") is None:
            return super().patch_size(tower)
        ratio = part(tower, "patch_embed").feat_ratio()  # a small CNN before the patches; one number, or two
        rows, columns = ratio if isinstance(ratio, (tuple, list)) else (ratio, ratio)
        return int(rows), int(columns)

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        patch = self.patch_size(tower)
        if patch is None or not part(tower, "patch_embed.dynamic_img_pad"):
            return super().grid(tower, height, width)
        rows, columns = -(-height // patch[0]), -(-width // patch[1])  # padded on the right and at the bottom
        return Grid(rows, columns, self.prefix(tower)).covering(patch, (height, width))

    def prefix(self, tower: nn.Module) -> int:
        count = part(tower, "num_prefix_tokens")  # from timm 0.8 on
        return int(count) if count is not None else super().prefix(tower) or 0

    def attention(self, block: nn.Module) -> BlockAttention | None:
        attention = block.get_submodule("attn")
        fused = part(attention, "qkv") is not None
        separate = all(part(attention, f"{name}_proj") is not None for name in "qkv")
        gated = part(attention, "gate") is not None or (part(attention, "num_kv_groups") or 1) > 1
        return TimmAttention(attention) if (fused or separate) and not gated else None


TIMM = TimmViT(
    name="timm's VisionTransformer and Eva",
    signs="patch_embed.proj, and blocks with norm1, attn.proj and mlp",
    patches="patch_embed.proj",
    blocks=("blocks",),
    norms=("norm1",),
    having=("attn.proj", "attn.num_heads", "mlp"),
    before=("cls_token", "dist_token"),
)


NORMS_BEHIND = re.compile("[Vv]2")  # Swin V2: a block's norms come after its attention and its MLP


class Swin(TowerFamily):
    """Swin: Hugging Face's blocks return (B, T, C), the others (B, h, w, C); no token comes before the patches.

    Each stage except the last halves the grid. A block attends within windows, not over the whole image.
    """

    name = "Swin transformers of Hugging Face, timm and torchvision"
    signs = "blocks with norm1 or layernorm_before and a window_size"
    blocks_give_tokens = False
    norms = ("norm1", "layernorm_before")
    patches = ("embeddings.patch_embeddings.projection", "patch_embed.proj", "features.0.0")

    def recognises(self, module: nn.Module) -> bool:
        if part(module, "cls_token") is not None:
            return False  # BEiT: its only window is the image
        return self.patch_size(module) is not None and any(map(self._is_block, module.modules()))

    def _is_block(self, module: nn.Module) -> bool:
        windows = part(module, "window_size") or part(module, "attn.window_size")
        return bool(windows) and any(part(module, name) is not None for name in self.norms)

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        return next((size for size in (stride_of(part(tower, path)) for path in self.patches) if size), None)

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        stages = part(tower, "encoder.layers")
        patches = None if stages is None else super().grid(tower, height, width)
        return None if patches is None else patches._replace(halvings=len(stages) - 1)

    def prefix(self, tower: nn.Module) -> int:
        return 0

    def block_names(self, tower: nn.Module) -> list[str]:
        return [name for name, module in tower.named_modules() if self._is_block(module)]

    def first_norm(self, block: nn.Module) -> nn.Module | None:
        if NORMS_BEHIND.search(f"{type(block).__name__} {type(part(block, 'attn')).__name__}"):
            return None
        return next(norm for norm in (part(block, name) for name in self.norms) if norm is not None)

    def attention(self, block: nn.Module) -> None:
        return None


# Names of a block's first norm in CLIP, Hugging Face's ViT, timm, OpenAI and torchvision.
NORMS_OF_MAPS = (_BatchNorm, nn.GroupNorm, _InstanceNorm)
FIRST_NORMS = ("layer_norm1", "layernorm_before", "norm1", "ln_1")


class PreNormTransformer(TowerFamily):
    """Any other, such as `nn.TransformerEncoder` and torchvision's. The tensor shows the number of prefix tokens.

    All its blocks have one width: stages of growing width return maps, like a convolutional network.
    """

    name = "pre-norm transformers"
    signs = f"blocks with {', '.join(FIRST_NORMS[:-1])} or {FIRST_NORMS[-1]}"

    def recognises(self, module: nn.Module) -> bool:
        norms = [norm for norm in map(_first_norm, module.modules()) if norm is not None]
        if len({_width(norm) for norm in norms}) != 1:
            return False
        return self.patch_size(module) is not None or not _has_overlapping_windows(module)

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        for module in tower.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size == module.stride:
                if module.stride == (1, 1) and _has_overlapping_windows(tower):
                    continue  # a shortcut around another convolution, which does not cut the image
                return stride_of(module)
        return None

    def batch_axis(self, tower: nn.Module, layer: str) -> int | None:
        """Return what the attention of the layer's block says."""
        names = layer.split(".")
        for end in range(len(names), 0, -1):
            attention = multihead_attention(tower.get_submodule(".".join(names[:end])))
            if attention is not None:
                return int(not attention.batch_first)
        return None

    def block_names(self, tower: nn.Module) -> list[str]:
        return [name for name, module in tower.named_modules() if _first_norm(module) is not None]

    def first_norm(self, block: nn.Module) -> nn.Module:
        norm = _first_norm(block)
        assert norm is not None, "a block of block_names"
        return norm

    def attention(self, block: nn.Module) -> BlockAttention | None:
        return torch_attention(block)


def _first_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.TransformerEncoderLayer) and not module.norm_first:
        return None  # its norm1 comes after the attention
    found = next((child for name, child in module.named_children() if name in FIRST_NORMS), None)
    return None if isinstance(found, NORMS_OF_MAPS) else found


def _width(norm: nn.Module) -> torch.Size | None:
    weight = getattr(norm, "weight", None)
    return weight.shape if isinstance(weight, Tensor) else None


def _has_overlapping_windows(module: nn.Module) -> bool:
    return any(
        isinstance(inner, nn.Conv2d) and any(k > s for k, s in zip(inner.kernel_size, inner.stride, strict=True))
        for inner in module.modules()
    )


class CNN(TowerFamily):
    """Any module with a convolution with overlapping windows (also ConvNeXt): its activations are already maps."""

    name = "convolutional networks"
    signs = "an nn.Conv2d with a kernel larger than its stride"
    blocks_give_tokens = False

    def recognises(self, module: nn.Module) -> bool:
        return _has_overlapping_windows(module)

    def grid(self, tower: nn.Module, height: int, width: int) -> None:
        return None

    def block_names(self, tower: nn.Module) -> list[str]:
        return []

    def first_norm(self, block: nn.Module) -> nn.Module:
        raise NotImplementedError("a convolutional network has no blocks")

    def attention(self, block: nn.Module) -> None:
        return None


PRE_NORM, CNN_FAMILY = PreNormTransformer(), CNN()
