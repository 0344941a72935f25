"""Tune CLIP's LayerNorms with its head, end to end on image labels alone, as GenD does (github.com/yermandy/GenD).

39,936 numbers of the tower change. They are kept beside the head; the other weights are the wheel's.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.yardstick.heads import pixels
from benchmarks.yardstick.photo_forgeries import forgeries
from benchmarks.yardstick.photographs import Photograph
from utils.gradcam_kit.model.detector import LoadedDetector

SEED, STEPS, PAIRS = 25, 100, 10  # pairs of a batch
RATE = 1e-3  # at 3e-4 a hundred steps move the norms by less than .03


def tune(detector: LoadedDetector, photographs: list[Photograph], path: Path) -> None:
    """Begin with the detector's own head; write the norms and the head to `path`. Each pair is seen once."""
    model: Any = detector.model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = tuned_parameters(model)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
    side = int(detector.settings.config["resolution"])
    pairs = forgeries(photographs, STEPS * PAIRS, SEED, side)
    started, losses = time.monotonic(), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for step in range(1, STEPS + 1):
        batch = [forgery.pair for forgery in islice(pairs, PAIRS)]
        images = pixels(image for pair in batch for image in (pair.real, pair.fake))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model({"image": detector.normalise(images)})["cls"]
        loss = F.cross_entropy(logits.float(), torch.tensor([0, 1] * len(batch)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 10 == 0:
            mean = sum(losses[-10:]) / 10
            print(f"tuned step {step}: mean loss {mean:.3f}, {time.monotonic() - started:.0f} s", flush=True)
            save_file({name: value.detach().clone() for name, value in trained.items()}, str(path))


def tuned_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The LayerNorms' weights and biases, and the head's, by their names in the detector."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if "norm" in name or "layrnorm" in name or name.startswith("head.")
    }
