"""Is the balanced backward pass worth having in a convolutional network?

    python -m benchmarks.yardstick.convolutional

A small network of the kind of EfficientNet (batch norm, SiLU, squeeze-and-excitation) is trained on image labels alone,
on the second forger's pairs. Batch norm is linear in evaluation; the balanced pass takes the gates of
squeeze-and-excitation for constant and an activation for its secant, x · f(x)/x with the quotient constant. Maps are
read after every stage. *pointing*: the centre of the hottest patch is forged. *cut*: the hottest 5 % of the patches get
the real frame's pixels; the fall of the margin as a share of its fall with the whole real frame. Means over held-out
fakes that are detected, with 95 % intervals over videos.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.yardstick.forgeries import Pair, forge, photos
from benchmarks.yardstick.training import batch
from utils.gradcam_kit.engine.backward import by_factor
from utils.gradcam_kit.engine.methods import METHODS
from utils.gradcam_kit.judge.bootstrap import VideoBootstrap
from utils.gradcam_kit.judge.trial import hottest, replaced

SEED, STEPS, PAIRS, VIDEOS, HELD_OUT = 41, 300, 16, 400, 80
GRID = 14  # patches a side, of which maps are compared
RULES = ("plain", "gates", "secants", "gates and secants")


class Gate(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, narrow, 1), nn.SiLU(), nn.Conv2d(narrow, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weigh(x.mean(dim=(2, 3), keepdim=True))
        return x * weights


class Block(nn.Module):
    """Inverted bottleneck with a gate; adds its input where the shapes allow it."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide, self.adds = 3 * before, stride == 1 and before == after
        self.layers = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            Gate(wide), nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return x + found if self.adds else found


class Network(nn.Module):
    """224 x 224 pixels → 14 x 14 positions → two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        shapes = [(24, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 2), (64, 64, 1), (64, 64, 1)]
        self.blocks = nn.ModuleList(Block(*shape) for shape in shapes)
        self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def train(path: Path) -> None:
    torch.manual_seed(SEED)
    rng, model = np.random.default_rng(SEED), Network()
    drawn = list(photos("train", VIDEOS, SEED))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=STEPS, pct_start=0.2)
    for step in range(1, STEPS + 1):
        images, label, _ = batch([forge(drawn[i], rng) for i in rng.choice(len(drawn), PAIRS, replace=False)])
        loss = F.cross_entropy(model(images), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, str(path))


def maps(model: Network, images: Tensor, rule: str, methods: list[str]) -> dict[tuple[str, int], Tensor]:
    """(method, block) → raw maps (B, h, w) of what that block returns, for the logit of fake."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(output)

    with ExitStack() as hooks:
        for module in model.modules():
            if "gates" in rule and isinstance(module, nn.Sigmoid):
                hooks.callback(module.register_forward_hook(lambda m, i, output: output.detach()).remove)
            if "secants" in rule and isinstance(module, nn.SiLU):
                hooks.callback(module.register_forward_hook(lambda m, i, output: by_factor(i[0], output)).remove)
        for block in model.blocks:
            hooks.callback(block.register_forward_hook(keep).remove)
        gradients = torch.autograd.grad(model(images)[:, 1].sum(), kept)
    return {
        (method, i): METHODS[method](A.detach(), G).relu()
        for method in methods
        for i, (A, G) in enumerate(zip(kept, gradients, strict=True))
    }


def measured(model: Network, pairs: list[Pair], videos: list[str]) -> None:
    images = torch.cat([batch(pairs[start : start + PAIRS])[0] for start in range(0, len(pairs), PAIRS)])
    reals, fakes = images[0::2], images[1::2]

    def margins(some: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([model(part) for part in some.split(PAIRS)])
        return logits[:, 1] - logits[:, 0]

    of_fakes, of_reals = margins(fakes), margins(reals)
    area = roc_auc_score([0] * len(reals) + [1] * len(fakes), torch.cat([of_reals, of_fakes]))
    found = (of_fakes > 0).nonzero().flatten()
    print(f"AUC {area:.3f}, {len(found)} of {len(fakes)} fakes detected, two frames a video")
    fakes, reals, of_fakes, of_reals = fakes[found], reals[found], of_fakes[found], of_reals[found]
    masks = torch.from_numpy(np.stack([pairs[i].mask > 0 for i in found.tolist()]))
    bootstrap = VideoBootstrap([videos[i] for i in found.tolist()], 0, resamples=2000)

    def row(name: str, pointing: Tensor, cut: Tensor) -> None:
        table = np.stack([pointing.double().numpy(), cut.double().numpy()], axis=1)
        low, high = np.quantile(bootstrap.means(table), [0.025, 0.975], axis=0)
        cells = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(table.mean(axis=0), low, high, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print("| map | pointing | cut |\n|---|---|---|")
    size = fakes.shape[-1] // GRID
    for rule in RULES:
        parts = [maps(model, part, rule, ["gradcam", "hirescam", "layercam"]) for part in fakes.split(PAIRS)]
        for method, block in parts[0]:
            raw = torch.cat([part[method, block] for part in parts])
            raw = F.interpolate(raw[:, None], (GRID, GRID), mode="area")[:, 0]
            empty = raw.flatten(1).amax(dim=1) <= 0
            place = raw.flatten(1).argmax(dim=1)
            y, x = (where * size + size // 2 for where in (place // GRID, place % GRID))
            after = margins(replaced(fakes, reals, hottest(raw, empty)))
            cut = (of_fakes - after) / (of_fakes - of_reals)
            row(f"{method}, block {block}, {rule}", masks[torch.arange(len(raw)), y, x] & ~empty, cut)


def main() -> None:
    parser = argparse.ArgumentParser(description="The balanced backward pass in a convolutional network, measured.")
    parser.add_argument("--output", type=Path, default=Path("runs/yardstick"))
    path = parser.parse_args().output / "convolutional.safetensors"
    if not path.is_file():
        train(path)
    model = Network()
    model.load_state_dict(load_file(str(path)))
    rng = np.random.default_rng(SEED + 1)
    drawn = list(photos("test", HELD_OUT, SEED + 1))
    measured(model.eval(), [forge(photo, rng) for photo in drawn], [photo.video for photo in drawn])


if __name__ == "__main__":
    main()
