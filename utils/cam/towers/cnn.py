"""Convolutional networks, ConvNeXt among them: their activations are maps already.

(B, C, h, w), in parts of ConvNeXt (B, h, w, C). Gradient checkpointing is timm's `grad_checkpointing` of each stage.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable

import torch
from torch import Tensor, nn

from utils.cam.towers.family import TowerFamily
from utils.errors import InputError


class CNN(TowerFamily):
    """Any module with a convolution whose windows overlap, unlike those that cut an image into patches."""

    name = "convolutional networks"
    signs = "an nn.Conv2d with a kernel larger than its stride"
    blocks_give_tokens = False

    def recognises(self, module: nn.Module) -> bool:
        return any(
            isinstance(inner, nn.Conv2d) and any(k > s for k, s in zip(inner.kernel_size, inner.stride))
            for inner in module.modules()
        )

    def grid(self, tower: nn.Module, height: int, width: int) -> None:
        return None

    def block_names(self, tower: nn.Module) -> list[str]:
        return []

    def first_norm(self, block: nn.Module) -> nn.Module:
        raise NotImplementedError("a convolutional network has no blocks")

    def attention(self, block: nn.Module) -> None:
        return None

    def default_layer(self, tower: nn.Module, run: Callable[[], object]) -> str:
        """The last module to return a map of more than one position: `layer4` of a ResNet, `features` of a VGG.

        Where that is can be seen by running the network only: modules may stand in any order, or never run.
        """
        finished: list[str] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                    finished.append(name)

            return hook

        with ExitStack() as hooks, torch.no_grad():
            for name, module in tower.named_modules():
                if name:
                    hooks.callback(module.register_forward_hook(note(name)).remove)
            run()
        once = [name for name in finished if finished.count(name) == 1]
        if not once:
            raise InputError(
                "no module of this network returns maps (B, C, h, w), once in a forward pass: name a layer"
            )
        return once[-1]
