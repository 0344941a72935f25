"""A training loop shaped like the host's, started by torchrun: losses and weights as JSON, TensorBoard in a folder.

torchrun --nproc_per_node 2 tests/helpers/ddp_training.py OUTPUT_FOLDER yes|no
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

# Before the process group: its functions keep the group of the time they are defined. Imported after it, by the tower's
# library, they keep gloo's threads alive until the interpreter exits, which then at times aborts.
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from tests.helpers.detectors import ARCHITECTURE, images, tiny_config
from utils.gradcam_kit.explaining.training_log import log_gradcam


def main(output: Path, heatmaps: bool) -> None:
    """Trains in a process group of its own."""
    dist.init_process_group("gloo")
    train(output, heatmaps)
    # The model is gone by now. Were it the last to hold the group, it would join gloo's thread with the interpreter's
    # lock held, and wait forever for a thread that wants that lock to let go of its last all-reduce.
    dist.destroy_process_group()


def train(output: Path, heatmaps: bool) -> None:
    """Ten epochs; with heatmaps of the same four images every five, if asked."""
    from detectors.clip_detector_gradcam import CLIPDetectorWithGradCAM

    rank = dist.get_rank()
    torch.manual_seed(11)
    # Dropout, so that a disturbed random state would show in the very next loss.
    config = tiny_config(backbone_config={"architecture": {**ARCHITECTURE, "attention_dropout": 0.2}})
    model = DistributedDataParallel(CLIPDetectorWithGradCAM(config))
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    writer = SummaryWriter(str(output / "tensorboard")) if rank == 0 else None
    fixed = {"image": images(4, seed=77)}
    losses = []
    for epoch in range(10):
        model.train()
        for step in range(3):
            data = {"image": images(4, seed=1000 * rank + 10 * epoch + step), "label": torch.tensor([0, 1, 0, 1])}
            prediction = model(data)
            loss = model.module.get_losses(data, prediction)["overall"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item().hex())
        if heatmaps:
            log_gradcam(writer, model, fixed, epoch, layers=["encoder.layers.3", "encoder.layers.1"])
            assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    weights = {key: value.double().sum().item().hex() for key, value in model.state_dict().items()}
    (output / f"rank{rank}.json").write_text(json.dumps({"losses": losses, "weights": weights}))
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "yes")
