"""PyTorch's own attention within a block."""

from __future__ import annotations

from torch import nn

from utils.cam.towers.attention import TorchAttention


def multihead_attention(block: nn.Module) -> nn.MultiheadAttention | None:
    """The one `nn.MultiheadAttention` among the parts of `block`, None where there is none or more than one."""
    found = [part for part in block.children() if isinstance(part, nn.MultiheadAttention)]
    return found[0] if len(found) == 1 else None


def torch_attention(block: nn.Module) -> TorchAttention | None:
    """Its attention, None where q, k and v are not one projection of the tokens alone."""
    module = multihead_attention(block)
    if module is None or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return None
    return TorchAttention(module)
