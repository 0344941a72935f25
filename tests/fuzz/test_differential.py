"""Random small towers, explained in every way, against plain autograd in float64.

`CASES=5000 python -m pytest tests/fuzz/test_differential.py` tries more of them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fuzz.random_towers import Attention, RandomTower, random_tower
from tests.helpers.references.method_references import ATTENTION_REFERENCES, TOKEN_REFERENCES
from tests.helpers.references.reference_autograd import Blank, Maps, recipe_maps, record, score_of
from utils.gradcam import Recipe, explain
from utils.gradcam_kit.base.errors import InputError

CASES = int(os.environ.get("CASES", "200"))
CHUNKS = 8
TOLERANCE = 1e-9  # of each map's peak
# Of HiResCAM's terms, which a LayerNorm makes cancel: on the residual stream of a last block but for one in a million.
ROUNDING = 1e-13
OF_CLASS_TOKEN = ("gradeclip", "attngrad", "rollout")


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One recipe: `layers` as the reference names them, `written` as the call names them."""

    method: str
    layers: Sequence[str]
    written: Sequence[Any]
    site: str
    backward: str

    def __str__(self) -> str:
        return f"{self.method} at {self.written} ({self.site}, {self.backward})"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch for a tower, and what is asked of it."""

    tower: RandomTower
    images: Tensor
    labels: list[int]
    target: Any
    asked: Sequence[BatchRequest]

    @classmethod
    def of(cls, seed: int) -> Case:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        tower = random_tower(rng)
        count = int(rng.integers(1, 4))
        images = torch.randn(count, 3, *tower.size, dtype=torch.float64)
        labels = rng.integers(0, 2, count).tolist()
        targets = ["predicted", "fake", "real", "margin", "label", "both", rng.integers(0, 2, count).tolist()]
        if tower.model.logits > 2:
            targets.append("class 3")
        asked = [_asked(tower, rng) for _ in range(1 if rng.random() < 0.7 else 2)]
        if len(asked) == 2 and asked[0].method == asked[1].method:
            asked.pop()
        return cls(tower=tower, images=images, labels=labels, target=targets[rng.integers(len(targets))], asked=asked)

    def explain(self) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """Of each recipe the signed and the raw maps (B, h, w) of each layer; of target "both" with the class."""
        recipes = [Recipe(one.method, one.written or None, one.site, one.backward) for one in self.asked]
        batch = {"image": self.images, "label": torch.tensor(self.labels)}
        explanation = explain(self.tower.model, batch, target=self.target, recipes=recipes)
        return [{layer: (of.signed, of.raw) for layer, of in made.layers.items()} for made in explanation.made]

    def reference(self) -> list[list[list[Maps]]]:
        """Of each recipe and each image the same, one image at a time. Raises Blank where no image has a gradient."""
        tower = copy.copy(self.tower)
        object.__setattr__(tower, "model", by_kernel(copy.deepcopy(tower.model)))
        found = []
        for one in self.asked:
            maps = [self._of_image(tower, one, i) for i in range(len(self.images))]
            if not any(map(any, maps)):
                raise Blank
            assert all(map(all, maps)), "a layer of which only some images have a gradient"
            found.append([list(filter(None, of_image)) for of_image in maps])
        return found

    def _of_image(self, tower: RandomTower, one: BatchRequest, i: int) -> list[Maps | None]:
        """The maps of one image in the order of layers, of target "both" two of each; None where no patch counts."""
        seen = record(tower, self.images[i : i + 1], one.backward)
        found: list[list[Maps | None]] = []
        for target in ("fake", "real") if self.target == "both" else (self.target,):
            score = score_of(seen.logits, target[i] if isinstance(target, list) else target, self.labels[i])
            try:
                found.append([*recipe_maps(tower, seen, score, (one.method, one.site), one.layers)])
            except Blank:
                found.append([None] * len(one.layers))
        return [pair for of_layer in zip(*found, strict=True) for pair in of_layer]

    def refusal(self) -> str:
        """Why no map can be drawn, of which the message has to say one; "" where all can."""
        return "|".join(filter(None, (_refusal(self.tower, one) for one in self.asked)))

    def __str__(self) -> str:
        tower, asked = self.tower, "; ".join(map(str, self.asked))
        return f"{tower.kind} of {tower.size}, {len(self.images)} images, target {self.target}: {asked}"


def by_kernel(model: Any) -> Any:
    """The model with every attention computed by `F.scaled_dot_product_attention`."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = True
    return model


def _asked(tower: RandomTower, rng: np.random.Generator) -> BatchRequest:
    attends = rng.random() < (0.45 if tower.blocks else 0.05)
    method = str(rng.choice(list(ATTENTION_REFERENCES if attends else TOKEN_REFERENCES)))
    layers, written = [], []
    for _ in range(1 if rng.random() < 0.7 else 2):
        layer, name = _layer(tower, rng, attends)
        if layer not in layers:
            layers.append(layer)
            written.append(name)
    if written[0] is None:
        layers, written = layers[:1], []
    written = [name for name in written if name is not None]
    return BatchRequest(
        method=method,
        layers=layers[: len(written) or 1],
        written=written,
        site=str(rng.choice(["layer_norm1", "residual"])),
        backward="balanced" if rng.random() < (0.3 if tower.blocks else 0.05) else "plain",
    )


def _layer(tower: RandomTower, rng: np.random.Generator, attends: bool) -> tuple[str, Any]:
    """A layer, and one of the ways to name it."""
    kind = rng.choice(
        ["none", "sum", "other", "block"], p=(0.1, 0.15, 0.05 if attends else 0.25, 0.7 if attends else 0.5)
    )
    if kind == "none":
        return tower.default, None
    if kind == "sum" and (tower.blocks or rng.random() < 0.1):
        return "sum", "sum"
    if kind == "other" or not tower.blocks:
        layer = str(rng.choice(tower.others))
        return layer, _named(tower, layer, rng)
    number = int(rng.integers(len(tower.blocks)))
    layer = tower.blocks[number]
    ways = [number, number - len(tower.blocks), _named(tower, layer, rng)]
    return layer, ways[rng.integers(3)]


def _named(tower: RandomTower, layer: str, rng: np.random.Generator) -> str:
    return f"backbone.{layer}" if rng.random() < 0.5 else layer


def _refusal(tower: RandomTower, asked: BatchRequest) -> str:
    attends = asked.method in ATTENTION_REFERENCES
    if "sum" in asked.layers and not tower.blocks:
        return "has no such blocks"
    if "sum" in asked.layers and asked.method == "rollout":
        return "has no maps to add"
    if attends and not set(asked.layers) <= {"sum", *tower.blocks}:
        return "has no attention to read"
    if asked.method in OF_CLASS_TOKEN and not tower.prefix:
        return "reads the class token"
    if asked.backward == "balanced" and not tower.blocks:
        return "neither attention nor such gates"
    return ""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_maps_of_random_towers_equal_plain_autograd(chunk: int) -> None:
    refused, wrong = 0, []
    seeds = range(chunk * CASES // CHUNKS, (chunk + 1) * CASES // CHUNKS)
    for seed in seeds:
        case = Case.of(seed)
        try:
            refused += check(case)
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"{seed}: {case}: {type(error).__name__} {error}")
    assert not wrong, f"{len(wrong)} of {len(seeds)} cases:\n" + "\n".join(wrong)
    assert refused <= len(seeds) / 3


def check(case: Case) -> bool:
    """Every map against the reference; whether the case was refused, which has to say why."""
    refusal = case.refusal()
    if not refusal:
        try:
            expected = case.reference()
        except Blank:
            refusal = "exactly 0"
    if refusal:
        with pytest.raises(InputError, match=refusal):
            case.explain()
        return True
    for one, got, of_images in zip(case.asked, case.explain(), expected, strict=True):
        for i, of_image in enumerate(of_images):
            for (layer, maps), pair in zip(got.items(), of_image, strict=True):
                for what, found, right in zip(("signed", "raw"), maps, pair[:2], strict=True):
                    assert found.dtype == torch.float64
                    peak = np.abs(pair.signed).max() or 1.0
                    error = np.abs(found[i].numpy() - right).max() / peak
                    assert error <= TOLERANCE + ROUNDING * pair.terms / peak, (
                        f"{one}: {what} map of {layer}, image {i}: off by {error:.1e}"
                    )
    return False
