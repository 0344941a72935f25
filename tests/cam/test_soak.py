"""Thousands of explanations: nothing that the process holds grows with their number, also from two threads.

SOAK_CALLS=20000 makes it twenty thousand, by hand.
"""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from tests.helpers.detectors import images, tiny_detector
from utils.gradcam_kit.explaining.mixin import GradCAMMixin

CALLS, STEPS = int(os.environ.get("SOAK_CALLS", "4000")), 10


class Block(nn.Module):
    """Mixes five tokens of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(8)
        self.self_attn = nn.Linear(5, 5)  # between tokens, instead of attention

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.self_attn(self.layer_norm1(tokens).transpose(1, 2)).transpose(1, 2)


class Tower(nn.Module):
    """One block on four patches, with the parts of CLIP's tower that the engine looks for and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.patch_embedding = nn.Conv2d(3, 8, 8, stride=8)
        self.encoder.layers = nn.ModuleList([Block()])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.embeddings.get_submodule("patch_embedding")(image).flatten(2).transpose(1, 2)
        return self.encoder.get_submodule("layers.0")(F.pad(patches, (0, 0, 1, 0)))[:, 0]


class NarrowDetector(GradCAMMixin):
    """The engine with as little around it as can be: about a thousand explanations a second."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = Tower()
        self.head = nn.Linear(8, 2)
        self.init_gradcam({"gradcam_enabled": True})

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = self.backbone(data["image"])
        logits = self.head(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}


def resident_kib() -> int:
    """Memory of this process that is in RAM."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1])


def held(model: nn.Module) -> dict[str, int]:
    """What a call could leave behind."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "hooks": sum(
            len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("_hooks")
        ),
        "threads": threading.active_count(),
        "system threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in objects),
        "objects": len(objects),
        "memory in KiB": resident_kib(),
    }


def slope(values: list[int]) -> float:
    """Growth from first to last, along the straight line through all of them."""
    return round(float(np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0]), 6)


# What may come and go; anything that a single call left behind would be thousands.
ALLOWED = {
    "hooks": 0,
    "threads": 0,
    "system threads": 0.5,
    "files": 0.5,
    "tensors": 5,
    "objects": 500,
    "memory in KiB": 8192,
}


def assert_flat(samples: list[dict[str, int]]) -> None:
    for name, allowed in ALLOWED.items():
        values = [sample[name] for sample in samples]
        assert abs(slope(values)) <= allowed, (name, values)


@pytest.mark.slow
def test_nothing_grows_with_thousands_of_explanations() -> None:
    model, image = NarrowDetector(), {"image": images(1, pixels=16)}
    for _ in range(500):
        model.generate_gradcam(image)
    first = model.generate_gradcam(image)
    samples = [held(model)]
    for _ in range(STEPS):
        for _ in range(CALLS // STEPS):
            maps = model.generate_gradcam(image)
        samples.append(held(model))
    assert samples[0]["hooks"] == samples[-1]["hooks"]
    assert_flat(samples)
    assert all(torch.equal(maps[name], first[name]) for name in first)


def test_a_leak_would_be_seen() -> None:
    """The slope test fails for one object left behind a call."""
    model, kept = NarrowDetector(), []
    samples = []
    for _ in range(6):
        for _ in range(100):
            kept.append(torch.zeros(1))
        samples.append(held(model))
    with pytest.raises(AssertionError, match="tensors"):
        assert_flat(samples)
    model.backbone.register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError, match="hooks"):
        assert_flat([held(NarrowDetector()), held(model)])


class Volume(NarrowDetector):
    """The same of clips: a 3-D convolution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.backbone = nn.Sequential(nn.Conv3d(3, 8, 4, 4), nn.ReLU())
        self.init_gradcam({"gradcam_enabled": True, "video_mode": True, "clip_size": 4, "resolution": 16})

    def forward(self, data: dict[str, torch.Tensor], inference: bool = False) -> dict[str, torch.Tensor]:
        features = self.backbone(data["image"].transpose(1, 2)).mean(dim=(2, 3, 4))
        logits = self.head(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}


class Convolutions(NarrowDetector):
    """The same of images: 2-D convolutions with a batch norm, whose statistics a heatmap must leave alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.init_gradcam({"gradcam_enabled": True, "resolution": 16})

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = self.backbone(data["image"]).mean(dim=(2, 3))
        logits = self.head(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}


def trained(
    kind: type[NarrowDetector], pairs: int, with_maps: bool
) -> tuple[list[float], dict[str, torch.Tensor], list[dict[str, int]]]:
    """Losses, weights, and what was held, of a training loop of `pairs` steps."""
    model = kind(3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    frames = images(8, pixels=16)
    data = {"image": frames if kind is not Volume else torch.stack([frames, frames.flip(3)] * 2, dim=1)}
    label = torch.tensor([0, 1] * 4)
    losses, samples = [], []
    for step in range(pairs):
        if with_maps:
            model.enable_gradcam()
            assert len(model.generate_gradcam({"image": data["image"][:1]})) == 1
            model.disable_gradcam()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data)["cls"], label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step >= pairs // 10 and step % (pairs // STEPS) == 0:
            samples.append(held(model))
    return losses, model.state_dict(), samples


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NarrowDetector, Convolutions, Volume])
def test_two_thousand_heatmaps_inside_a_training_loop_change_nothing(kind: type[NarrowDetector]) -> None:
    losses, weights, samples = trained(kind, 2_000, with_maps=True)
    plain_losses, plain_weights, _ = trained(kind, 2_000, with_maps=False)
    assert losses == plain_losses and losses[-1] < losses[0]
    assert all(torch.equal(weights[key], plain_weights[key]) for key in weights)
    assert_flat(samples)


# ------------------------------------------------------------------------------------------------------- two threads


class Explainer(threading.Thread):
    """Explains its own images again and again and keeps every map that is not what it is when nothing else runs."""

    def __init__(self, model: CLIPDetectorWithGradCAM, seed: int, start: threading.Barrier, layers: list[str]) -> None:
        super().__init__()
        self.model, self.layers, self.barrier = model, layers, start
        self.image = {"image": images(2, seed=seed)}
        self.expected = model.generate_gradcam(self.image, layers=layers)
        self.wrong: list[Any] = []

    def run(self) -> None:
        self.barrier.wait()
        for _ in range(100):
            try:
                maps = self.model.generate_gradcam(self.image, layers=self.layers)
                if not all(torch.equal(maps[name], self.expected[name]) for name in self.expected):
                    self.wrong.append(maps)
            except Exception as error:
                self.wrong.append(error)


@pytest.mark.parametrize("detectors", ["two", "one"])
def test_two_threads_explain_at_once(detectors: str) -> None:
    first = tiny_detector(0).train()
    second = first if detectors == "one" else tiny_detector(1).train()
    second.backbone.encoder.layers[1].eval()
    for parameter in second.head.parameters():
        parameter.requires_grad_(False)
    state = [
        [(m.training for m in model.modules()), [p.requires_grad for p in model.parameters()]]
        for model in (first, second)
    ]
    before = [[list(modes), flags] for modes, flags in state]
    together = threading.Barrier(2)
    threads = [
        Explainer(first, 1, together, ["encoder.layers.3", "encoder.layers.1"]),
        Explainer(second, 2, together, ["encoder.layers.2"]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [thread.wrong for thread in threads] == [[], []]
    after = [
        [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
        for model in (first, second)
    ]
    assert after == before
    assert held(first)["hooks"] == held(second)["hooks"] == 0


def test_predictions_from_another_thread_are_not_touched() -> None:
    """A detector in evaluation mode predicts in one thread what it predicts alone, while another explains it."""
    model = tiny_detector()
    image = {"image": images(2, seed=7)}
    with torch.no_grad():
        expected = model(image)["cls"]
    together = threading.Barrier(2)
    explainer = Explainer(model, 1, together, ["encoder.layers.3", "encoder.layers.1"])
    explainer.start()
    together.wait()
    predictions = []
    with torch.no_grad():
        while explainer.is_alive():
            predictions.append(model(image)["cls"])
    explainer.join()
    assert explainer.wrong == [] and len(predictions) > 20
    assert all(torch.equal(one, expected) for one in predictions)
