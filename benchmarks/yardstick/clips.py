"""Clips whose forgery is known in time and space, small networks trained on them, and how often maps find it.

    python -m benchmarks.yardstick.clips            # minutes on a CPU; prints a table

Three forgers. "region": a fine checkerboard, as upsampling leaves it, on a square of some neighbouring frames. "order":
every frame is flawless, and four neighbouring frames stand in the reverse order; "shuffled": in any other order, with
both ends moved. The networks are of all shapes that are known; a trial on other clips chooses the map of each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.gradcam import Recipe, explain
from utils.gradcam_kit.explaining.clips.checking import margins_of
from utils.gradcam_kit.explaining.clips.choosing import choose_clip_map
from utils.gradcam_kit.explaining.clips.explanation import ClipExplanation
from utils.gradcam_kit.explaining.clips.subject import clip_subject_of
from utils.gradcam_kit.judge.clips.time import OrderTest

FRAMES, SIZE, PATCH, REGION = 8, 32, 8, 10
STEPS, BATCH = 400, 24
GROUND = 12  # cells of the coarse texture that drifts through a clip


CHECKERBOARD = torch.arange(SIZE)[:, None].add(torch.arange(SIZE)[None, :]).remainder(2).mul(2.0).sub(1)


class Clips(NamedTuple):
    """Clips (N, T, 3, S, S), 1 for fake (N,), the forged frames (N, T) bool, the forged pixels (N, S, S) bool.

    `real`: the clips before they were forged.
    """

    clips: Tensor
    label: Tensor
    frames: Tensor
    region: Tensor
    real: Tensor


def real_clips(count: int, generator: torch.Generator) -> Tensor:
    """A smooth texture that drifts by one or two pixels a frame, in a direction of its own, with a little noise."""
    wide = SIZE + 2 * 2 * FRAMES
    coarse = torch.randn(count, 3, GROUND, GROUND, generator=generator)
    texture = F.interpolate(coarse, size=(wide, wide), mode="bicubic", align_corners=False)
    steps = torch.randint(-2, 3, (count, 2), generator=generator)
    steps[(steps == 0).all(dim=1)] = 1
    frames = []
    for t in range(FRAMES):
        places = (2 * FRAMES + steps * (t - FRAMES // 2)).tolist()
        frames.append(torch.stack([texture[i, :, y : y + SIZE, x : x + SIZE] for i, (y, x) in enumerate(places)]))
    clips = torch.stack(frames, dim=1)
    return clips + 0.05 * torch.randn(clips.shape, generator=generator)


def forged(kind: str, count: int, seed: int) -> Clips:
    """Half of them real. `kind`: "region", "order" or "shuffled"."""
    generator = torch.Generator().manual_seed(seed)
    real = real_clips(count, generator)
    clips = real.clone()
    label = (torch.arange(count) % 2 == 0).long()
    frames = torch.zeros(count, FRAMES, dtype=torch.bool)
    region = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for i in label.nonzero().flatten().tolist():
        length = int(torch.randint(2, 4, (1,), generator=generator)) if kind == "region" else 4
        start = int(torch.randint(0, FRAMES - length + 1, (1,), generator=generator))
        frames[i, start : start + length] = True
        if kind != "region":
            order = torch.arange(length).flip(0) if kind == "order" else shuffled(length, generator)
            clips[i, start : start + length] = real[i, start : start + length][order]
            region[i] = True
            continue
        top, left = torch.randint(0, SIZE - REGION + 1, (2,), generator=generator).tolist()
        region[i, top : top + REGION, left : left + REGION] = True
        clips[i, start : start + length] += 0.4 * CHECKERBOARD * region[i]
    return Clips(clips, label, frames, region, real)


def shuffled(length: int, generator: torch.Generator) -> Tensor:
    """A random order that moves the first and the last frame, so that its edges are known."""
    while True:
        order = torch.randperm(length, generator=generator)
        if order[0] != 0 and order[-1] != length - 1:
            return order


class Volume(nn.Module):
    """3-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 16, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(16, 24, 3, (1, 2, 2), 1), nn.ReLU(),
            nn.Conv3d(24, 24, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(24, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(clips.transpose(1, 2)).amax((2, 3, 4)))
        return logits


class Folded(nn.Module):
    """2-D convolutions of each frame, and the mean of the frames' logits: blind to their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(24, 2)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(clips.flatten(0, 1)).amax((2, 3)))
        return logits.unflatten(0, clips.shape[:2]).mean(1)


class OverFrames(nn.Module):
    """2-D convolutions of each frame, and a head that reads the frames' features in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Folded().layers
        self.over_time = nn.Sequential(
            nn.Conv1d(24 * 16, 32, 3, 1, 1), nn.ReLU(), nn.Conv1d(32, 32, 3, 1, 1), nn.ReLU()
        )
        self.head = nn.Linear(32, 2)

    def forward(self, clips: Tensor) -> Tensor:
        maps = F.adaptive_avg_pool2d(self.layers(clips.flatten(0, 1)), 4)
        of_frames = maps.flatten(1).unflatten(0, clips.shape[:2]).transpose(1, 2)
        logits: Tensor = self.head(self.over_time(of_frames).amax(2))
        return logits


class Thumbnail(nn.Module):
    """2-D convolutions of a picture of all frames, two rows of four."""

    def __init__(self) -> None:
        super().__init__()
        self.thumbnail_rows = 2
        self.layers, self.head = Folded().layers, nn.Linear(24, 2)

    def forward(self, clips: Tensor) -> Tensor:
        rows = clips.unflatten(1, (2, FRAMES // 2)).permute(0, 3, 1, 4, 2, 5)
        logits: Tensor = self.head(self.layers(rows.flatten(4, 5).flatten(2, 3)).amax((2, 3)))
        return logits


class Tokens(nn.Module):
    """Hugging Face's VideoMAE, of which all tokens are read, or TimeSformer, of which the first is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        from transformers import TimesformerConfig, TimesformerModel, VideoMAEConfig, VideoMAEModel

        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
        sizes |= {"image_size": SIZE, "num_frames": FRAMES, "patch_size": PATCH}
        mae, former = VideoMAEConfig(**sizes), TimesformerConfig(**sizes)
        self.backbone: nn.Module = VideoMAEModel(mae) if kind == "videomae" else TimesformerModel(former)
        self.norm, self.head, self.first = nn.LayerNorm(48), nn.Linear(48, 2), kind == "timesformer"

    def forward(self, clips: Tensor) -> Tensor:
        tokens = self.backbone(clips)[0]
        logits: Tensor = self.head(self.norm(tokens[:, 0] if self.first else tokens.mean(1)))
        return logits


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "volume": Volume,
    "folded": Folded,
    "over frames": OverFrames,
    "thumbnail": Thumbnail,
    "videomae": lambda: Tokens("videomae"),
    "timesformer": lambda: Tokens("timesformer"),
}
STEPS_OF = {"videomae": 500, "timesformer": 500}
READERS = ("volume", "over frames", "videomae", "timesformer")  # which learn to tell the order of frames
ORDER_STEPS, ORDER_STEPS_OF = 800, {"timesformer": 3000}


def trained(name: str, kind: str, steps: int | None = None, seed: int = 0) -> nn.Module:
    """A network trained on the clips of a forger, by labels of clips alone."""
    torch.manual_seed(seed)
    usual = STEPS_OF.get(name, STEPS) if kind == "region" else ORDER_STEPS_OF.get(name, ORDER_STEPS)
    model, steps, rate, rising = TOWERS[name](), steps or usual, 2e-3, 0.3
    if kind != "region" and isinstance(model, Tokens) and model.first:
        rate, rising = 1e-3, 0.1
        for table in (
            "embeddings.time_embeddings",
            "embeddings.position_embeddings",
        ):  # zero at first: it would tell no frame from another
            nn.init.normal_(model.backbone.get_parameter(table), std=0.5)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=rising)
    for step in range(steps):
        batch = forged(kind, BATCH, 1_000_000 + step)
        loss = F.cross_entropy(model(batch.clips), batch.label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


class Found(NamedTuple):
    """Shares of the detected fakes: hottest frame forged; hottest frame and place forged. `accuracy` of all clips."""

    accuracy: float
    frame: float
    both: float
    fakes: int


def hits(heat: Tensor, data: Clips) -> tuple[float, float]:
    """Of heat (N, T, S, S): how often its largest value lies in a forged frame, and there in the forged region.

    A cell away from the region counts: that is how far a cell's value is spread when it is drawn.
    """
    place = heat.flatten(1).argmax(dim=1)
    frame, pixel = place // (SIZE * SIZE), place % (SIZE * SIZE)
    near = F.max_pool2d(data.region.float().unsqueeze(1), 2 * (PATCH // 2) + 1, 1, PATCH // 2).squeeze(1) > 0
    rows = torch.arange(len(heat))
    in_time, in_space = data.frames[rows, frame], near.flatten(1)[rows, pixel]
    return in_time.float().mean().item(), (in_time & in_space).float().mean().item()


def motion(clips: Tensor) -> Tensor:
    """(N, T, S, S): how much each pixel differs from the frames around, a control that knows no detector."""
    steps = (clips[:, 1:] - clips[:, :-1]).abs().mean(dim=2)
    return torch.cat([steps[:, :1], torch.maximum(steps[:, 1:], steps[:, :-1]), steps[:, -1:]], dim=1)


def explained(model: nn.Module, clips: Tensor, **how: Any) -> ClipExplanation:
    """As a user explains them, for fake."""
    found = explain(model, clips, target="fake", clip_layout="btchw", **how)
    assert isinstance(found, ClipExplanation), "of clips"
    return found


def measured(model: nn.Module, data: Clips, **how: Any) -> Found:
    """On the fakes that the model calls fake."""
    with torch.no_grad():
        called = model(data.clips).argmax(dim=1)
    accuracy = (called == data.label).float().mean().item()
    chosen = (called == 1) & (data.label == 1)
    some = Clips(*(part[chosen] for part in data))
    heat = torch.cat([explained(model, part, **how).heatmap for part in some.clips.split(32)])
    return Found(accuracy, *hits(heat, some), int(chosen.sum()))


def chosen(model: nn.Module, kind: str = "region") -> Recipe:
    """The map that a run would draw: chosen by a trial on 16 clips that the model calls fake."""
    some = forged(kind, 64, 5)
    with torch.no_grad():
        fakes = some.clips[model(some.clips).argmax(dim=1) == 1][:16]
    subject = clip_subject_of(model, fakes, layout="btchw")
    return choose_clip_map(subject, margins_of(subject, 16), fakes, "fake", range(len(fakes))).used


def found_by_windows(model: nn.Module, data: Clips, paired: bool) -> float:
    """The share of detected fakes whose largest value of `cost_of_windows` lies among the frames in a wrong order."""
    with torch.no_grad():
        found = (model(data.clips).argmax(dim=1) == 1) & (data.label == 1)
    some = Clips(*(part[found] for part in data))
    batch = {"image": some.clips, **({"paired_real": some.real} if paired else {})}
    explanation = explain(model, batch, method="gradcam", target="fake", clip_layout="btchw")
    assert isinstance(explanation, ClipExplanation), "of clips"
    frame = explanation.cost_of_windows().argmax(dim=1)
    return some.frames[torch.arange(len(frame)), frame].float().mean().item()


def order_of(model: nn.Module, data: Clips) -> OrderTest:
    """Every clip is a video of its own."""
    return explained(model, data.clips).order_test()


def main() -> int:
    """Train, measure, print."""
    held_out = forged("region", 200, 7)
    fakes = Clips(*(part[held_out.label == 1] for part in held_out))
    centre = torch.zeros(len(fakes.clips), FRAMES, SIZE, SIZE)
    centre[:, FRAMES // 2, SIZE // 2, SIZE // 2] = 1
    controls = {
        "random": torch.rand(centre.shape, generator=torch.Generator().manual_seed(1)),
        "centre": centre,
        "motion energy": motion(fakes.clips),
    }
    print("| map | accuracy | hottest frame forged | and hottest place | fakes | order |\n|---|---|---|---|---|---|")
    for name, heat in controls.items():
        frame, both = hits(heat, fakes)
        print(f"| {name} |  | {frame:.2f} | {both:.2f} | {len(heat)} |  |")
    for name in TOWERS:
        model = trained(name, "region")
        recipe = chosen(model)
        found = measured(model, held_out, recipes=recipe)
        word = order_of(model, Clips(*(part[:16] for part in held_out))).word
        print(
            f"| {name} | {found.accuracy:.2f} | {found.frame:.2f} | {found.both:.2f} | {found.fakes} | {word} |",
            flush=True,
        )
    wrong, mixed = forged("order", 400, 8), forged("shuffled", 400, 8)
    heading = "order | accuracy | hottest frame | sorted | real | shuffled: sorted | real | order test"
    print(f"\n| {heading} |\n{'|---' * 8}|")
    for name in READERS:
        model = trained(name, "order")
        found = measured(model, wrong, recipes=chosen(model, "order"))
        word = order_of(model, Clips(*(part[:16] for part in wrong))).word
        by_windows = " | ".join(
            f"{found_by_windows(model, data, paired):.2f}" for data in (wrong, mixed) for paired in (False, True)
        )
        print(f"| {name} | {found.accuracy:.2f} | {found.frame:.2f} | {by_windows} | {word} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
