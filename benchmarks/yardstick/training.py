"""Train the towers `trial` (masks and labels), `scratch` and `early` (image labels alone) on the second forger's pairs.

    python -m benchmarks.yardstick.training --tower scratch --output runs/yardstick

Both begin from random weights; the patch embedding's filters begin as frequencies. Fakes stand beside the real frame
that they were made from in every batch, and are forged anew each time a frame is drawn.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.yardstick.forgeries import Pair, Photo, forge, photos
from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from examples.train_demo_detector import ForgedPatchLoss, start_from_frequencies
from utils.gradcam_kit.base.files import TRAINING_FOLDER

TOWERS = ("trial", "scratch", "early")
SEED = {"trial": 21, "scratch": 22, "early": 24}
STEPS = {"trial": 150, "scratch": 300, "early": 220}
PAIRS = 16  # of a batch
VIDEOS = 400
PATCH_LOSS = 2.0
EARLY_BLOCK = 2  # whose CLS token `early` has to know the label already


def config(weights: Path | None = None) -> dict[str, Any]:
    """The demo's YAML with patches of 16 pixels, a grid of 14 x 14."""
    path = TRAINING_FOLDER / "config" / "detector" / "clip_gradcam_demo.yaml"
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["backbone_config"]["architecture"]["patch_size"] = 16
    settings["weights_path"] = None if weights is None else str(weights)
    settings["gradcam_enabled"] = weights is not None
    settings["gradcam_backward"] = "auto"  # the demo's YAML names the rule that suits the demo's detector
    return settings


def batch(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Images (2·pairs, 3, 224, 224) float32 in [-1, 1], labels, and the share of each patch that is forged."""
    pixels = np.stack([image for pair in pairs for image in (pair.real, pair.fake)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    masks = torch.from_numpy(np.stack([mask for pair in pairs for mask in (0 * pair.mask, pair.mask)]))
    return images, torch.tensor([0, 1] * len(pairs)), F.avg_pool2d(masks[:, None].float() / 255.0, 16)[:, 0]


class EarlyLoss(nn.Module):
    """Asks the CLS token for the image's label long before the last block (deep supervision). Used in training only."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.reader = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 2))
        self._cls: list[Tensor] = []
        tower.get_submodule(f"encoder.layers.{EARLY_BLOCK}").register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self._cls.append((output[0] if isinstance(output, tuple) else output)[:, 0])

    def forward(self, label: Tensor) -> Tensor:
        return F.cross_entropy(self.reader(self._cls.pop()), label)


@torch.no_grad()
def auc(model: nn.Module, pairs: list[Pair]) -> float:
    model.eval()
    parts = [batch(pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]
    margins = torch.cat([model({"image": images})["prob"] for images, _, _ in parts])
    return float(roc_auc_score(torch.cat([label for _, label, _ in parts]), margins))


def train(tower: str, output: Path) -> Path:
    random.seed(SEED[tower])
    torch.manual_seed(SEED[tower])
    rng = np.random.default_rng(SEED[tower])
    drawn: list[Photo] = list(photos("train", VIDEOS, SEED[tower]))
    checked = [forge(photo, rng) for photo in photos("val", 40, SEED[tower])]
    model = CLIPDetectorWithGradCAM(config())
    pairs = [forge(photo, rng) for photo in drawn[:PAIRS]]
    start_from_frequencies(model.backbone.embeddings.patch_embedding, batch(pairs)[0])
    patch_loss = ForgedPatchLoss(model.backbone, (1, 2, 3, 4), 128)
    early_loss = EarlyLoss(model.backbone)
    trained = [*model.parameters(), *patch_loss.parameters(), *early_loss.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=STEPS[tower], pct_start=0.15)
    started = time.monotonic()
    for step in range(1, STEPS[tower] + 1):
        model.train()
        images, label, share = batch([forge(drawn[i], rng) for i in rng.choice(len(drawn), PAIRS, replace=False)])
        if rng.random() < 0.5:
            images, share = images.flip(3), share.flip(2)
        loss = F.cross_entropy(model({"image": images})["cls"], label)
        patches, early = patch_loss(share), early_loss(label)
        if tower == "trial":
            loss = loss + PATCH_LOSS * patches
        elif tower == "early":
            loss = loss + early
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            took = time.monotonic() - started
            print(
                f"{tower} step {step}: loss {loss.item():.3f}, AUC {auc(model, checked):.4f}, {took:.0f} s", flush=True
            )
    path = output / f"{tower}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, str(path))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tower of the yardstick on the second forger's pairs.")
    parser.add_argument("--tower", choices=TOWERS, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"))
    arguments = parser.parse_args()
    print(train(arguments.tower, arguments.output))


if __name__ == "__main__":
    main()
