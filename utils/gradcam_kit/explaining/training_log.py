"""Heatmaps in TensorBoard during training, of the same images each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..base.decision import CLASS_NAMES
from ..base.errors import InputError
from ..drawing.overlays import denormalise, overlay, text_line, unseen_in_grey
from ..engine.heads import Target
from ..engine.towers import unwrapped
from .images import as_batch
from .mixin import GradCAMMixin

COLUMNS = 8
LINE, LETTERS = 18, 12  # height of a caption and of its letters, in pixels


def log_gradcam(
    writer: Any,
    model: nn.Module,
    data_dict: Mapping[str, Tensor] | Tensor,
    epoch: int,
    every: int = 5,
    layers: Any = None,
    method: str | None = None,
    target: Target | None = None,
    **options: Any,
) -> None:
    """Log an image grid per layer every `every` epochs as `gradcam/<layer>`: each face above its heatmap and caption.

    The caption holds P(fake) and, if `data_dict` has it, the label. The epoch is the step, so a layer's slider goes
    through the epochs. TensorBoard keeps a random ten steps per tag, unless it is started with
    `tensorboard --logdir DIR --samples_per_plugin images=1000`.

    Training is not affected: weights, gradients, modes, random state and losses stay identical to the last bit. It also
    works while Grad-CAM is disabled.

    Args:
        writer: a `SummaryWriter`, or None in processes that do not log (under DDP, all but the first).
        model: a detector with heatmaps, or a module that holds one: DDP, a compiled or an averaged model, a
            LightningModule.
        data_dict: `image` (B, 3, H, W), normalised, on the detector's device; the same images at every call.
        epoch: this call's epoch, from 0; the first is always logged.
        every: epochs between logs, at least 1.
        layers, method, target, options: as in `GradCAMMixin.explain`. With target "fake" the maps of one image can be
            compared between epochs; "predicted" changes its meaning whenever the prediction flips.

    Raises:
        InputError, NonFiniteMapError: as `GradCAMMixin.explain`.
    """
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise InputError(f"every is {every!r}: give a whole number of epochs, at least 1")
    if writer is None or epoch % every:
        return
    if not hasattr(writer, "add_image"):
        raise InputError(f"writer is {type(writer).__name__}: give a SummaryWriter, or what has its add_image")
    detector = _detector_in(model)
    batch = as_batch(data_dict)
    explanation = detector.explain(batch, layers=layers, method=method, target=target, **options)
    images = denormalise(batch["image"], detector.gradcam.mean, detector.gradcam.std)
    texts = captions(explanation.prediction["prob"], batch.get("label"))
    for name, maps in explanation.layers.items():
        drawn = overlay(images, maps.normalised, maps.empty, detector.gradcam.colormap)
        drawn = unseen_in_grey(drawn, maps.canvas.seen)
        writer.add_image(f"gradcam/{name}", grid(images, drawn.permute(0, 3, 1, 2), texts).cpu(), epoch)


def _detector_in(model: nn.Module) -> GradCAMMixin:
    """Find the only detector in `model`. Raises InputError."""
    inside = unwrapped(model) if isinstance(model, nn.Module) else model
    if isinstance(inside, GradCAMMixin):
        return inside
    named = inside.named_modules() if isinstance(inside, nn.Module) else ()
    found = {name: module for name, module in named if isinstance(module, GradCAMMixin)}
    if len(found) != 1:
        held = f"holds {len(found)} detectors ({', '.join(found)})" if found else "holds no detector with heatmaps"
        raise InputError(
            f"model is {type(inside).__name__}, which {held}: give one, such as utils.gradcam.load makes it"
        )
    return next(iter(found.values()))


def captions(prob_fake: Tensor, label: Tensor | None) -> list[str]:
    """Return captions such as `fake 0.93, is real`. `prob_fake` (B,) in [0, 1]; `label` (B,), 0 real, others fake."""
    texts = [f"fake {value:.2f}" for value in prob_fake.tolist()]
    if label is None or label.numel() != len(texts):
        return texts
    return [f"{text}, {_truth(number)}" for text, number in zip(texts, label.flatten().tolist(), strict=True)]


def _truth(label: float) -> str:
    """Return `is real` or `is fake`; for a fraction, from smoothing or mixing, the label itself."""
    fraction = isinstance(label, float) and not label.is_integer()
    return f"label {label:.2f}" if fraction else f"is {CLASS_NAMES[int(label != 0)].lower()}"


def grid(images: Tensor, drawn: Tensor, texts: Sequence[str]) -> Tensor:
    """Arrange images and drawings, both (B, 3, H, W) uint8, with texts: (3, rows, columns) uint8, eight per row."""
    width = images.shape[-1]
    drawn_texts = [text_line(text, width, LINE, LETTERS, centred=True) for text in texts]
    lines = [torch.from_numpy(line.copy()).permute(2, 0, 1) for line in drawn_texts]
    pairs = torch.cat([images, drawn, torch.stack(lines).to(images.device)], dim=2)
    missing = -len(pairs) % min(COLUMNS, len(pairs))
    padded = torch.cat([pairs, pairs.new_full((missing, *pairs.shape[1:]), 255)])
    rows = padded.split(min(COLUMNS, len(pairs)))
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
