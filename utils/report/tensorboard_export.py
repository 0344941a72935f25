"""A run's metrics, precision-recall curves and comparison images for TensorBoard (`--tensorboard DIR`)."""

from __future__ import annotations

from pathlib import Path

from utils.data.images import UnreadableImage, decode_image, read_file
from utils.results.read_run import DatasetOnDisk, RunOnDisk
from utils.results.sample_folder import Sample

IMAGES = 50  # samples per dataset, the most confident first: TensorBoard keeps every image in memory


def write_tensorboard(run: RunOnDisk, folder: Path) -> None:
    """Write one events file into `folder`. Needs the package tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for data in run.datasets:
            for name, value in (data.metrics or {}).items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{data.name}/{name}", value)
            if len(set(data.label.tolist())) == 2:
                writer.add_pr_curve(f"{data.name}/precision-recall", data.label, data.prob_fake)
            for sample in _most_confident(data):
                try:
                    image = decode_image(read_file(str(sample.folder / sample.comparison)), None)
                except UnreadableImage:
                    continue  # deleted since; the report says so
                writer.add_image(f"{data.name} {sample.outcome}/sample{sample.index}", image, dataformats="HWC")


def _most_confident(data: DatasetOnDisk) -> list[Sample]:
    there = [sample for sample in data.samples if not sample.lost]
    return sorted(there, key=lambda sample: -sample.confidence)[:IMAGES]
