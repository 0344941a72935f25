"""What a map of a clip costs: time and memory beside a plain forward pass, and a forward and a backward pass.

    python benchmarks/clips.py [--rounds 5]

A network of each family that reads clips, of 16 frames of 112 pixels, with random weights, on one thread, of which the
processor's time is measured. All contenders of a network run in turn, round after round; the fastest of each counts.
Memory is the largest resident size during a call above that before it, of one clip and of four. A few minutes on a CPU.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.gradcam import InputError, explain

FRAMES, PIXELS, ROWS = 16, 112, 4
SIZES = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
SIZES |= {"image_size": PIXELS, "num_frames": FRAMES, "patch_size": 16}
BATCHES = (1, 4)
BALANCED = {"method": "hirescam", "layers": "0", "site": "residual", "backward": "balanced"}


def convolutions(kind: type[nn.Module], stride: Any) -> nn.Sequential:
    """Five of them, which halve a frame four times."""
    widths, layers = (3, 32, 64, 128, 256), list[nn.Module]()
    for before, after in itertools.pairwise(widths):
        layers += [kind(before, after, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, kind(256, 256, 3, 1, 1), nn.ReLU())


class Volume(nn.Module):
    """3-D convolutions, which keep every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = convolutions(nn.Conv3d, (1, 2, 2)), nn.Linear(256, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(clips.transpose(1, 2)).mean((2, 3, 4)))
        return logits


class Folded(nn.Module):
    """2-D convolutions of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = convolutions(nn.Conv2d, 2), nn.Linear(256, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(clips.flatten(0, 1)).mean((2, 3)))
        return logits.unflatten(0, clips.shape[:2]).mean(1)


class Thumbnail(Folded):
    """2-D convolutions of a picture of all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.thumbnail_rows = ROWS

    def forward(self, clips: Tensor) -> Tensor:
        rows = clips.unflatten(1, (ROWS, FRAMES // ROWS)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        logits: Tensor = self.head(self.layers(rows).mean((2, 3)))
        return logits


class Transformer(nn.Module):
    """Hugging Face's VideoMAE, TimeSformer or X-CLIP, of which all tokens or the first ones are read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        mit = {"mit_hidden_size": 192, "mit_intermediate_size": 768, "mit_num_attention_heads": 3}
        more = mit if name == "XCLIPVision" else {}
        config = getattr(transformers, f"{name}Config")(**SIZES, **more)
        self.backbone, self.head, self.name = getattr(transformers, f"{name}Model")(config), nn.Linear(192, 2), name

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.flatten(0, 1) if self.name == "XCLIPVision" else clips
        tokens = self.backbone(frames)[0]
        read = tokens.mean(1) if self.name == "VideoMAE" else tokens[:, 0]
        logits: Tensor = self.head(read)
        return logits.unflatten(0, clips.shape[:2]).mean(1) if self.name == "XCLIPVision" else logits


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "3-D convolutions": Volume,
    "frames in the batch": Folded,
    "thumbnail": Thumbnail,
    "VideoMAE": partial(Transformer, "VideoMAE"),
    "TimeSformer": partial(Transformer, "Timesformer"),
    "X-CLIP": partial(Transformer, "XCLIPVision"),
}


def plain(model: nn.Module, clips: Tensor) -> None:
    with torch.no_grad():
        model(clips)


def trained(model: nn.Module, clips: Tensor) -> None:
    """As a step of training has them, gradients of all weights."""
    model(clips)[:, 1].sum().backward()
    model.zero_grad()


def contenders(model: nn.Module, clips: Tensor) -> dict[str, Callable[[], Any]]:
    ours = partial(explain, model, clips, target="fake", clip_layout="btchw")
    found: dict[str, Callable[[], Any]] = {
        "forward": partial(plain, model, clips),
        "forward and backward": partial(trained, model, clips),
        "Grad-CAM, default layer": ours,
    }
    balanced = partial(ours, **BALANCED)
    try:
        balanced()
    except InputError:  # no rule for this network
        return found
    return {**found, "balanced HiResCAM, first block": balanced}


def peak_mebibytes(run: Callable[[], Any]) -> float:
    """The largest resident size while `run` runs, above that before it; on Linux."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{FRAMES} frames of {PIXELS} pixels, one clip, {rounds} rounds; ÷ is by the forward and backward pass\n")
    print("| Network | | ms | ÷ | MiB, 1 clip | MiB, 4 clips |\n|---|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model, clips = build().eval(), torch.randn(max(BATCHES), FRAMES, 3, PIXELS, PIXELS)
        runs = contenders(model, clips[:1])
        times: dict[str, list[float]] = {one: [] for one in runs}
        for _ in range(rounds + 1):
            for one, run in runs.items():
                start = time.thread_time()
                run()
                times[one].append(1000 * (time.thread_time() - start))
        fastest = {one: min(some[1:]) for one, some in times.items()}
        memory = {count: contenders(model, clips[:count]) for count in BATCHES}
        for one, spent in fastest.items():
            peaks = " | ".join(f"{peak_mebibytes(memory[count][one]):.0f}" for count in BATCHES)
            print(
                f"| {name} | {one} | {spent:.0f} | {spent / fastest['forward and backward']:.2f} | {peaks} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
