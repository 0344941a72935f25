"""What every method is held to, whether it reads tokens or attention; `TESTERS` has one for each registered method."""

from __future__ import annotations

import abc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.references.method_references import (
    ATTENTION_REFERENCES,
    TOKEN_REFERENCES,
    AttentionReference,
    TokenReference,
)
from utils.gradcam_kit.engine.attention import (
    ATTENTION_METHODS,
    Attention,
    AttentionPass,
    BlockProjection,
    attention_token_maps,
)
from utils.gradcam_kit.engine.checks import Checks
from utils.gradcam_kit.engine.layers import LayerError
from utils.gradcam_kit.engine.maps import LayerMaps, NonFiniteMapError, layer_maps, to_layer_maps
from utils.gradcam_kit.engine.methods import METHODS, signed_maps
from utils.gradcam_kit.engine.tokens import Tokens, on_grid, reach
from utils.gradcam_kit.engine.towers import AttentionModules, Grid

PREFIX, SIZE, CHANNELS, HEADS, BLOCKS = 2, (30, 40), 12, 3, 3
GRID = Grid(3, 4, PREFIX)
Key = tuple[str, str]  # layer or block, and what of it
Inputs = dict[Key, Tensor]  # (B, tokens, CHANNELS) each


class MethodTester(abc.ABC):
    """Inputs, maps and expected values of one method; the checks are the same for all."""

    reads_gradient = True  # and so knows the class
    refuses_zero_gradients = True  # of a whole batch; else the maps are flagged as empty

    def __init__(self, name: str) -> None:
        self.name = name

    @abc.abstractmethod
    def keys(self) -> list[Key]:
        """The inputs of the method."""

    @abc.abstractmethod
    def maps(self, inputs: Inputs) -> dict[str, LayerMaps]:
        """What the library makes of them."""

    @abc.abstractmethod
    def expected(self, inputs: dict[Key, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Signed and raw map (rows, columns) of one image, in float64."""

    # ------------------------------------------------------------------------------------------------------- inputs

    def inputs(self, count: int = 3, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        tokens = PREFIX + GRID.rows * GRID.columns
        return {
            key: torch.randn(count, tokens, CHANNELS, dtype=torch.float64, generator=generator) for key in self.keys()
        }

    @staticmethod
    def is_gradient(key: Key) -> bool:
        return key[1] in ("G", "output_gradient")

    def one_sided(self, sign: int) -> Inputs:
        """Positive activations, and gradients that all have one sign."""
        return {
            key: (tensor.abs() + 0.01) * (sign if self.is_gradient(key) else 1) for key, tensor in self.inputs().items()
        }

    # ------------------------------------------------------------------------------------------------------- checks

    def check_reference(self, inputs: Inputs, tolerance: float) -> None:
        """Each image's maps against the formula, in units of the map's largest value."""
        for layer, maps in self.maps(inputs).items():
            for i in range(len(maps.raw)):
                one_image = {key: tensor[i].double().cpu().numpy() for key, tensor in inputs.items()}
                for got, expected in zip((maps.signed[i], maps.raw[i]), self.expected(one_image, layer), strict=True):
                    scale = np.abs(expected).max() or 1.0
                    np.testing.assert_allclose(got.double().cpu() / scale, expected / scale, rtol=0, atol=tolerance)

    def check_batch_equals_singles(self) -> None:
        inputs = self.inputs(4)
        together = self.maps(inputs)
        for i in range(4):
            for layer, maps in self.maps({key: tensor[i : i + 1] for key, tensor in inputs.items()}).items():
                torch.testing.assert_close(maps.signed[0], together[layer].signed[i], rtol=1e-12, atol=1e-15)
                torch.testing.assert_close(maps.raw[0], together[layer].raw[i], rtol=1e-12, atol=1e-15)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Map arithmetic is float32 for any model but a float64 one, on the very numbers that were given."""
        inputs = {key: tensor.to(dtype) for key, tensor in self.inputs().items()}
        double = dtype == torch.float64
        for maps in self.maps(inputs).values():
            assert maps.signed.dtype == maps.raw.dtype == (torch.float64 if double else torch.float32)
            assert maps.normalised.dtype == torch.float32
        self.check_reference(inputs, 1e-10 if double else 1e-4)

    def check_device(self, device: str) -> None:
        inputs = {key: tensor.to(device) for key, tensor in self.inputs().items()}
        for maps in self.maps(inputs).values():
            assert {tensor.device.type for tensor in vars(maps).values() if isinstance(tensor, Tensor)} == {device}
        self.check_reference(inputs, 1e-9)

    def check_both_signs(self) -> None:
        """Evidence of both signs is in `signed`, that for the score alone in `raw`; without any the map is empty."""
        for maps in self.maps(self.inputs()).values():
            assert (maps.raw >= 0).all() and not maps.empty.any()
            assert (maps.signed < 0).any() == self.reads_gradient and (maps.signed > 0).any()
        for maps in self.maps(self.one_sided(1)).values():
            assert torch.equal(maps.signed, maps.raw) and (maps.raw > 0).any()
        if self.reads_gradient:
            for maps in self.maps(self.one_sided(-1)).values():
                assert (maps.signed <= 0).all() and not maps.raw.any()
                assert maps.empty.all() and not maps.normalised.any()

    def check_zero_gradient(self) -> None:
        """One image that nothing speaks for is flagged, and its neighbours are what they were; a whole batch of them."""
        inputs = self.inputs()
        plain = self.maps(inputs)
        for key in filter(self.is_gradient, inputs):
            inputs[key] = inputs[key] * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
        for layer, maps in self.maps(inputs).items():
            assert maps.empty.tolist() == [False, True, False]
            assert torch.equal(maps.raw[::2], plain[layer].raw[::2]) and not maps.normalised[1].any()
        nothing = {key: tensor * 0 if self.is_gradient(key) else tensor for key, tensor in inputs.items()}
        if self.refuses_zero_gradients:
            with pytest.raises(LayerError, match="exactly 0"):
                self.maps(nothing)
        else:
            assert all(maps.empty.all() for maps in self.maps(nothing).values())

    def check_nan(self, value: float) -> None:
        """In any of the inputs of one image: refused, naming that image."""
        for key in self.keys():
            inputs = self.inputs()
            inputs[key][1] = value
            with pytest.raises(NonFiniteMapError, match=r"image\(s\) \[1\]") as caught:
                self.maps(inputs)
            assert caught.value.samples == (1,)


class TokenMethodTester(MethodTester):
    """A method of activations and gradients."""

    def __init__(self, name: str, reference: TokenReference) -> None:
        super().__init__(name)
        self.reference = reference

    def keys(self) -> list[Key]:
        return [("layer", "A"), ("layer", "G")]

    def maps(self, inputs: Inputs) -> dict[str, LayerMaps]:
        tokens = {"layer": Tokens(inputs["layer", "A"], inputs["layer", "G"])}
        checks = Checks()
        maps = layer_maps([signed_maps(self.name, on_grid(tokens, GRID))], reach(tokens, GRID), SIZE, checks)
        checks.read()
        return maps

    def expected(self, inputs: dict[Key, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
        A, G = (inputs[layer, name][PREFIX:].T.reshape(-1, GRID.rows, GRID.columns) for name in "AG")
        signed = self.reference(A, G)
        return signed, np.maximum(signed, 0)


class AttentionMethodTester(MethodTester):
    """A method of queries, keys, values and the gradient of the heads' outputs; two of three blocks are explained."""

    refuses_zero_gradients = False

    def __init__(self, name: str, reference: AttentionReference) -> None:
        super().__init__(name)
        self.reference = reference
        self.method = ATTENTION_METHODS[name]
        self.reads_gradient = self.method.needs_output_gradient

    def keys(self) -> list[Key]:
        read = range(BLOCKS) if self.method.every_block else (0, 2)
        names = [*self.method.projections, *(["output_gradient"] if self.reads_gradient else [])]
        return [(f"block{i}", name) for i in read for name in names]

    def maps(self, inputs: Inputs) -> dict[str, LayerMaps]:
        modules = AttentionModules(HEADS, *(nn.Identity() for _ in range(4)))
        blocks = [Attention(f"block{i}", modules) for i in range(BLOCKS)]
        explained = {"block2": blocks[2], "block0": blocks[0]}
        attention = AttentionPass(explained, blocks, self.method.projections, list(explained.values()))
        projections = {BlockProjection(*key): tensor for key, tensor in inputs.items() if not self.is_gradient(key)}
        gradients = {key[0]: tensor for key, tensor in inputs.items() if self.is_gradient(key)}
        images = len(next(iter(inputs.values())))
        token_maps = attention_token_maps(self.method, attention, projections, gradients, images)
        checks = Checks()
        maps = to_layer_maps(token_maps, GRID, SIZE, checks)
        checks.read()
        return maps

    def expected(self, inputs: dict[Key, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
        names = [f"block{i}" for i in range(BLOCKS)]
        blocks = [{key[1]: array for key, array in inputs.items() if key[0] == name} for name in names]
        signed, raw = self.reference(blocks[: names.index(layer) + 1], HEADS)
        shape = (GRID.rows, GRID.columns)
        return signed[PREFIX:].reshape(shape), raw[PREFIX:].reshape(shape)


TESTERS: dict[str, MethodTester] = {
    **{name: TokenMethodTester(name, reference) for name, reference in TOKEN_REFERENCES.items() if name in METHODS},
    **{
        name: AttentionMethodTester(name, reference)
        for name, reference in ATTENTION_REFERENCES.items()
        if name in ATTENTION_METHODS
    },
}
