"""Towers of other libraries with random weights: torchvision, timm, open_clip and peft, where they are installed.

They lie in a folder of their own beside the virtual environment's packages (`make`), which only tests look into: their
torchvision is the ordinary wheel beside a CPU build of torch, and works once its two compiled operators are declared.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(sys.prefix) / "towers"


def library(name: str) -> Any:
    """The module `name`; the test is skipped where it is not installed."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if not hasattr(torch.ops.torchvision, "nms"):
        operators = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(operators)
    return importlib.import_module(name)


_kept_alive: list[Any] = []


class OpenAIBlock(nn.Module):
    """A residual block of OpenAI's `clip`, which passes (T, B, C)."""

    def __init__(self, width: int, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 2 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(2 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed


class OpenAITower(nn.Module):
    """The vision tower of OpenAI's `clip`, with its names; the package itself needs a setuptools of its time."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 3, patch: int = 16, pixels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((pixels // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(OpenAIBlock(width, heads, False) for _ in range(blocks)))
        self.proj = nn.Parameter(torch.randn(width, width))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        x = self.ln_pre(tokens + self.positional_embedding).transpose(0, 1)
        blocks: Any = self.transformer.resblocks
        feature: Tensor = self.ln_post(blocks(x).transpose(0, 1)[:, 0]) @ self.proj
        return feature
