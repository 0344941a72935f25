"""timm's VisionTransformer and Eva (EVA, DINOv3, the Perception Encoder, rotary ViTs).

Tokens (B, T, C): `num_prefix_tokens` of CLS and registers, then the patches. `attn.qkv` is one projection. Gradient
checkpointing is `grad_checkpointing`, which counts in evaluation, too.
"""

from __future__ import annotations

from torch import nn

from utils.cam.towers.attention import TimmAttention
from utils.cam.towers.family import Grid, TowerFamily, blocks_at, stride_of, submodule


class TimmViT(TowerFamily):
    """The module that holds `patch_embed` and `blocks`; also older ones and those made after its pattern."""

    name = "timm's VisionTransformer and Eva"
    signs = "patch_embed.proj, and blocks with norm1, attn.proj and mlp"

    def recognises(self, module: nn.Module) -> bool:
        return self.patch_size(module) is not None and blocks_at(
            module, "blocks", having=("norm1", "attn.proj", "attn.num_heads", "mlp")
        )

    def patch_size(self, tower: nn.Module) -> tuple[int, int] | None:
        if submodule(tower, "patch_embed", "backbone") is not None:  # a small CNN before the patches
            rows, columns = submodule(tower, "patch_embed").feat_ratio()
            return int(rows), int(columns)
        return stride_of(submodule(tower, "patch_embed", "proj"))

    def grid(self, tower: nn.Module, height: int, width: int) -> Grid | None:
        patch = self.patch_size(tower)
        assert patch is not None, "a tower that was recognised"
        if submodule(tower, "patch_embed", "dynamic_img_pad"):  # pads at the right and at the bottom
            height, width, seen = height + -height % patch[0], width + -width % patch[1], (height, width)
            patches = Grid(height // patch[0], width // patch[1], self.prefix(tower))
            return patches.covering(patch, seen)
        return super().grid(tower, height, width)

    def prefix(self, tower: nn.Module) -> int:
        count = submodule(tower, "num_prefix_tokens")
        if count is not None:
            return int(count)
        names = ("cls_token", "dist_token")  # before timm 0.8
        return sum(isinstance(submodule(tower, name), nn.Parameter) for name in names)

    def block_names(self, tower: nn.Module) -> list[str]:
        return [f"blocks.{i}" for i in range(len(submodule(tower, "blocks")))]

    def first_norm(self, block: nn.Module) -> nn.Module:
        return block.get_submodule("norm1")

    def attention(self, block: nn.Module) -> TimmAttention | None:
        attention = submodule(block, "attn")
        fused = submodule(attention, "qkv") is not None
        separate = all(submodule(attention, f"{name}_proj") is not None for name in "qkv")
        gated = submodule(attention, "gate") is not None or (submodule(attention, "num_kv_groups") or 1) > 1
        return TimmAttention(attention) if (fused or separate) and not gated else None
