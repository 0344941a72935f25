"""The input of a host's detector in evaluation: the image, and other data that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...base.errors import InputError
from ...base.files import TRAINING_FOLDER
from ...data.frame import Frame
from ...data.masks import read_mask

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601
IDCT_CUT = 0.33  # frequencies (row + column) below this share of the spectrum's side are removed


class HostInputs(dict[str, Any]):
    """A `data_dict` that computes the other keys of the host's dataset when the detector reads them.

    | Key | Value |
    |---|---|
    | `label` | (B,) int64, the frames' labels; 0 without frames, since no prediction may depend on it |
    | `label_spe` | (B,) int64, the number of the frame's forgery in the config's `label_dict`; 0 without frames |
    | `mask` | (B, 1, H, W) float32 in [0, 1]; None, as in the host, if a frame has none |
    | `landmark` | None |
    | `idct` | (B, 1, H, W) float32, if the host's dataset has it |

    Before a key is read, `"mask" in data_dict` is False, as in a host without masks. Any other key raises InputError.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        detector: str,
        mean: Sequence[float],
        std: Sequence[float],
        frames: Sequence[Frame] | None = None,
        label_dict: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(given)
        self.detector, self.mean, self.std = detector, mean, std
        self.frames, self.label_dict = frames, label_dict or {}

    def __missing__(self, key: str) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "label": lambda: self._numbers(lambda frame: frame.label),
            "mask": self._mask,
            "landmark": lambda: None,
        }
        if all(frame.forgery in self.label_dict for frame in self.frames or ()):
            makers["label_spe"] = lambda: self._numbers(lambda frame: self.label_dict[frame.forgery])
        if host_makes("idct"):
            makers["idct"] = self._idct
        if key not in makers:
            raise InputError(
                f"detector {self.detector!r} reads data_dict[{key!r}], which a test set lacks: it has"
                f" {', '.join(dict.fromkeys([*self, *makers]))}"
            )
        self[key] = makers[key]()
        return self[key]

    def _numbers(self, number: Callable[[Frame], int]) -> Tensor:
        image: Tensor = self["image"]
        numbers = [0] * len(image) if self.frames is None else [number(frame) for frame in self.frames]
        return torch.tensor(numbers, device=image.device)

    def _mask(self) -> Tensor | None:
        image: Tensor = self["image"]
        masks = [read_mask(frame.path, image.shape[-1]) for frame in self.frames or ()]
        there = [mask for mask in masks if mask is not None]
        if not there or len(there) < len(masks):
            return None
        return torch.from_numpy(np.stack(there)).unsqueeze(1).float().to(image.device)

    def _idct(self) -> Tensor:
        image: Tensor = self["image"]
        mean, std = (image.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return high_frequencies(((image * std + mean) * 255).round())


def high_frequencies(pixels: Tensor) -> Tensor:
    """Remove the low frequencies of grey images. Takes RGB (B, 3, H, W), 0 to 255; returns float32 (B, 1, H, W).

    The DCT coefficients (row r, column c) with r · W / H + c < 0.33 W are removed, and the result x of the inverse DCT
    becomes x / 127.5 - 1. This is the second stream of Chen et al., Local Relation Learning for Face Forgery Detection
    (2021), as in DeepfakeBench's dataset.
    """
    pixels = pixels.float()
    grey = (pixels * pixels.new_tensor(GREY).view(3, 1, 1)).sum(dim=1).round().double()
    height, width = grey.shape[1:]
    rows, columns = (_dct_matrix(size).to(grey) for size in (height, width))
    spectrum = rows @ grey @ columns.T
    r, c = torch.arange(height).to(grey).view(-1, 1), torch.arange(width).to(grey)
    spectrum = spectrum * (width / height * r + c >= IDCT_CUT * width)
    return ((rows.T @ spectrum @ columns) / 127.5 - 1).unsqueeze(1).float()


@lru_cache(maxsize=4)
def _dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II, (size, size): row k is the k-th cosine, so its transpose is its inverse."""
    k, n = torch.arange(size).double().view(-1, 1), torch.arange(size).double()
    matrix = torch.cos(torch.pi * (n + 0.5) * k / size) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


@cache
def host_makes(key: str) -> bool:
    """Tell whether the source of the host's datasets mentions `key`."""
    files = (TRAINING_FOLDER / "dataset").glob("*.py")
    return any(key in path.read_text(encoding="utf-8", errors="replace") for path in files)
