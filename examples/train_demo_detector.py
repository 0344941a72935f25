"""Train the embedded detector on the synthetic data, and watch its heatmaps move while it learns.

    python examples/make_demo_data.py --output data/demo --seed 7
    python examples/train_demo_detector.py --output runs/train_demo
    tensorboard --logdir runs/train_demo

The training loop is an ordinary one; what concerns the heatmaps is `log_heatmaps`. From the image label alone so small
a tower hardly learns at all, so a second loss asks each patch token whether its patch is forged. The layer that answers
is not part of the detector and is thrown away.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM
from utils.gradcam_kit.data.frame import DataSettings, Frame
from utils.gradcam_kit.data.frame_paths import mask_path
from utils.gradcam_kit.data.images import decode_image
from utils.gradcam_kit.data.readers import read_dataset
from utils.gradcam_kit.judge.detection_metrics import DetectionMetrics, detection_metrics

ROOT = Path(__file__).resolve().parent.parent
AUXILIARY_WEIGHT = 2.0
LATE_WEIGHT = 1.0
AUXILIARY_BLOCKS = (1, 2, 3, 4)  # the next block reads their output; the last block's patches do not reach the decision
READER_WEIGHT = 10.0  # initial weight of the mean over a token's channels
LABEL_SMOOTHING = 0.1  # an overconfident detector has vanishing gradients, and so noisy maps
FORGED_PATCH = 0.6  # a patch counts as forged if the mask covers this share of its pixels


class ForgedPatches(Dataset[Any]):
    """Images, labels, and the forged share of each patch."""

    def __init__(self, frames: list[Frame], patch: int) -> None:
        self.frames = frames
        self.patch = patch

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        """Return image (3, H, W) float32 in [-1, 1], label, forged share of each patch (h, w)."""
        frame = self.frames[i]
        pixels = decode_image(Path(frame.path).read_bytes(), resolution=None)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        if frame.label == 1:
            mask = decode_image(Path(mask_path(frame.path)).read_bytes(), resolution=None)[..., 0]
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
        share = F.avg_pool2d(torch.from_numpy(mask)[None].float() / 255.0, self.patch)[0]
        return image, frame.label, share


class PairedBatches(Sampler[list[int]]):
    """Random batches that pair each fake with its real frame, so that only the forgery tells them apart."""

    def __init__(self, frames: list[Frame], batch_size: int) -> None:
        by_image: dict[tuple[str, str], list[int]] = {}
        for i, frame in enumerate(frames):
            by_image.setdefault((frame.video, Path(frame.path).name), []).append(i)
        self.pairs = list(by_image.values())
        self.pairs_per_batch = batch_size // 2

    def __len__(self) -> int:
        return len(self.pairs) // self.pairs_per_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = random.sample(self.pairs, len(self.pairs))
        for start in range(0, len(self) * self.pairs_per_batch, self.pairs_per_batch):
            yield [i for pair in order[start : start + self.pairs_per_batch] for i in pair]


class ForgedPatchLoss(nn.Module):
    """Predicts from the patch tokens after some blocks whether their patch is forged. Only used in training.

    One linear reader serves all blocks, so that the residual stream says it in one direction. It begins as the mean
    over channels: no decision depends on that mean, since every block begins by taking it away (LayerNorm), but
    LayerCAM and Grad-CAM++ were made for features after a ReLU, which are positive where something is seen, and this
    makes the residual stream such a place.
    """

    def __init__(self, tower: nn.Module, blocks: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.reader = nn.Linear(width, 1)
        nn.init.constant_(self.reader.weight, READER_WEIGHT / width)
        nn.init.zeros_(self.reader.bias)
        self._tokens: list[Tensor] = []
        for block in blocks:
            tower.get_submodule(f"encoder.layers.{block}").register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:  # evaluation and heatmaps do not need the patches
            self._tokens.append(output[0] if isinstance(output, tuple) else output)

    def forward(self, share: Tensor) -> Tensor:
        """Return the mean cross entropy for the batch that just passed the tower; `share` (B, h, w)."""
        forged = (share.flatten(1) >= FORGED_PATCH).float()
        losses = []
        for tokens in self._tokens:
            answer = self.reader(tokens[:, 1:]).squeeze(-1)  # without the CLS token
            losses.append(F.binary_cross_entropy_with_logits(answer, forged, pos_weight=torch.tensor(4.0)))
        self._tokens.clear()
        return torch.stack(losses).mean()


class LateEvidenceLoss(nn.Module):
    """Penalises a CLS token that detects a forgery before the last block reads the patches.

    A fake and the real frame it was made from are to have the same CLS token in front of every block. Then the evidence
    has to come from the patches that the last block reads, and a map of that block shows where they are. Used in
    training only.
    """

    def __init__(self, tower: nn.Module, blocks: int) -> None:
        super().__init__()
        self._cls: list[Tensor] = []
        for block in range(1, blocks):
            tower.get_submodule(f"encoder.layers.{block}").register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._cls.append(inputs[0][:, 0])

    def forward(self, label: Tensor) -> Tensor:
        """Return the squared distance between the CLS tokens of each pair over their variance, averaged over blocks."""
        losses = []
        for cls in self._cls:
            distance = (cls[label == 0] - cls[label == 1]).square().mean()
            losses.append(distance / cls.detach().var(dim=0).mean())
        self._cls.clear()
        return torch.stack(losses).mean()


def start_from_frequencies(embedding: nn.Conv2d, images: Tensor) -> None:
    """Initialise each filter of the patch embedding as one frequency (DCT-II), all equally strong on `images`.

    Noise and sharpness are a hundredth of a patch's brightness: random filters drown them for many epochs.
    """
    width, _, patch, _ = embedding.weight.shape
    grid = torch.arange(patch)
    waves = torch.cos(torch.pi / patch * (grid[None] + 0.5) * grid[:, None])  # (frequency, pixel)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])  # grey, two hues
    low = [(u, v, c) for u in range(4) for v in range(4) for c in range(3)]
    high = [(u, v, 0) for u in range(patch) for v in range(patch) if max(u, v) >= 4]
    chosen = low + random.sample(high, width - len(low))
    filters = torch.stack([colours[c][:, None, None] * waves[u][:, None] * waves[v] for u, v, c in chosen])
    with torch.no_grad():
        spread = F.conv2d(images, filters, stride=patch).std(dim=(0, 2, 3))
        embedding.weight.copy_(0.2 * filters / spread[:, None, None, None])  # keep positions visible too


class Setup(NamedTuple):
    """The parts of the training loop."""

    model: CLIPDetectorWithGradCAM
    patch_loss: ForgedPatchLoss
    late_loss: LateEvidenceLoss
    train: DataLoader[Any]
    val: DataLoader[Any]
    val_frames: list[Frame]


def setup(config: dict[str, Any], data: Path, workers: int) -> Setup:
    labels = yaml.safe_load((ROOT / "config" / "test_config.yaml").read_text(encoding="utf-8"))["label_dict"]
    settings = DataSettings(
        json_folder=data / "dataset_json",
        root=data,
        label_dict=labels,
        compression=config["compression"],
        resolution=config["resolution"],
    )
    architecture = config["backbone_config"]["architecture"]
    frames = {split: read_dataset("demo", settings, split) for split in ("train", "val")}
    patch, batch_size = architecture["patch_size"], config["train_batchSize"]
    train = DataLoader(
        ForgedPatches(frames["train"], patch),
        batch_sampler=PairedBatches(frames["train"], batch_size),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    val = DataLoader(ForgedPatches(frames["val"], patch), batch_size=batch_size)
    model = CLIPDetectorWithGradCAM(config)
    start_from_frequencies(model.backbone.embeddings.patch_embedding, next(iter(val))[0])
    patch_loss = ForgedPatchLoss(model.backbone, AUXILIARY_BLOCKS, architecture["hidden_size"])
    late_loss = LateEvidenceLoss(model.backbone, architecture["num_hidden_layers"])
    return Setup(model, patch_loss, late_loss, train, val, frames["val"])


def train(parts: Setup, epochs: int, heatmaps_every: int, output: Path) -> None:
    model, patch_loss = parts.model, parts.patch_loss
    optimiser = torch.optim.AdamW([*model.parameters(), *patch_loss.parameters()], lr=1e-3, weight_decay=0.05)
    steps = epochs * len(parts.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps, pct_start=0.15)
    watched = watched_samples(parts.val, parts.val_frames)
    writer = SummaryWriter(str(output))
    step = 0
    for epoch in range(1, epochs + 1):
        model.train()
        for image, label, share in tqdm(parts.train, desc=f"Epoch {epoch}/{epochs}"):
            if random.random() < 0.5:  # whole batches, so that pairs stay together
                image, share = image.flip(3), share.flip(2)
            batch = {"image": image, "label": label}
            prediction = model(batch)
            loss = F.cross_entropy(prediction["cls"], label, label_smoothing=LABEL_SMOOTHING)
            auxiliary, late = patch_loss(share), parts.late_loss(label)
            optimiser.zero_grad()
            (loss + AUXILIARY_WEIGHT * auxiliary + LATE_WEIGHT * late).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            writer.add_scalar("train/loss", loss.item(), step)
            writer.add_scalar("train/patch_loss", auxiliary.item(), step)
            writer.add_scalar("train/late_loss", late.item(), step)
            writer.add_scalar("train/accuracy", model.get_train_metrics(batch, prediction)["acc"], step)
        metrics = evaluate(parts)
        print(f"epoch {epoch}: validation AUC {metrics.auc:.4f}, accuracy {metrics.acc:.4f}")
        writer.add_scalar("val/auc", metrics.auc, epoch)
        writer.add_scalar("val/acc", metrics.acc, epoch)
        if epoch % heatmaps_every == 0 or epoch == epochs:
            log_heatmaps(model, watched, writer, epoch)
        save_file(model.state_dict(), str(output / "clip_demo.safetensors"))
    writer.close()


def watched_samples(loader: DataLoader[Any], frames: list[Frame], count: int = 8) -> dict[str, Tensor]:
    """Return a fixed batch of validation fakes, spread over the dataset, to follow the heatmaps over epochs."""
    fakes = [i for i, frame in enumerate(frames) if frame.label == 1]
    chosen = [loader.dataset[fakes[k * len(fakes) // count]] for k in range(count)]
    return {"image": torch.stack([item[0] for item in chosen]), "label": torch.tensor([item[1] for item in chosen])}


def log_heatmaps(model: CLIPDetectorWithGradCAM, batch: dict[str, Tensor], writer: SummaryWriter, epoch: int) -> None:
    """Draw one row of images per layer, bright where the evidence for "fake" is."""
    model.enable_gradcam()
    heatmaps = model.generate_gradcam(batch, target="fake")
    model.disable_gradcam()
    images = batch["image"] * 0.5 + 0.5
    writer.add_images("samples", images, epoch)
    for layer, heatmap in heatmaps.items():
        writer.add_images(f"heatmaps/{layer}", images * (0.3 + 0.7 * heatmap[:, None]), epoch)


@torch.no_grad()
def evaluate(parts: Setup) -> DetectionMetrics:
    parts.model.eval()
    prob: list[float] = []
    for image, _, _ in parts.val:
        prob += parts.model({"image": image})["prob"].tolist()
    frames = parts.val_frames
    return detection_metrics(
        prob, [frame.label for frame in frames], [(frame.forgery, frame.video) for frame in frames]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded detector on the synthetic data.")
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "detector" / "clip_gradcam_demo.yaml")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo", help="made by examples/make_demo_data.py")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "train_demo", help="TensorBoard log and weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--heatmaps_every", type=int, default=1, help="epochs between heatmaps")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    config["gradcam_enabled"] = False  # switched on only to draw heatmaps
    random.seed(config["manualSeed"])
    torch.manual_seed(config["manualSeed"])
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    train(
        setup(config, arguments.data, arguments.workers), arguments.epochs, arguments.heatmaps_every, arguments.output
    )
    print(f"{arguments.output / 'clip_demo.safetensors'} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
