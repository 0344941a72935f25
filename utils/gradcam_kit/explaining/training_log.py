"""Heatmaps in TensorBoard while a detector trains: the same images each time, so that changes can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..base.decision import CLASS_NAMES
from ..base.errors import InputError
from ..drawing.overlays import denormalised, overlay, text_line, unseen_in_grey
from ..engine.targets import Target
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
    """Logs one image grid per layer every `every` epochs: `gradcam/<layer>`, each face above its heatmap and caption.

    The caption has the probability of fake and, where `data_dict` has it, the label. The epoch is the step: one tag per
    layer, whose slider goes through the epochs. TensorBoard keeps ten steps of a tag, chosen by lot, unless it is
    started with `tensorboard --logdir DIR --samples_per_plugin images=1000`.

    Training is not affected: weights, gradients, modes, random state and losses are the same to the last bit. It works
    whether Grad-CAM is enabled or not, since `every` and `writer` already say when to draw.

    Args:
        writer: a `SummaryWriter`, or None in the processes that do not log (under DDP all but the first).
        model: a detector with heatmaps, or a module that holds one: DDP, a compiled or an averaged model, a
            LightningModule.
        data_dict: `image` (B, 3, H, W) as the detector gets it, on its device; the same B images at every call.
        epoch: of this call, from 0; the first is always logged.
        every: how many epochs apart, at least 1.
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
    images = denormalised(batch["image"], detector.gradcam.mean, detector.gradcam.std)
    texts = captions(explanation.prediction["prob"], batch.get("label"))
    for name, maps in explanation.layers.items():
        drawn = overlay(images, maps.normalised, maps.empty, detector.gradcam.colormap)
        drawn = unseen_in_grey(drawn, maps.canvas.seen)
        writer.add_image(f"gradcam/{name}", grid(images, drawn.permute(0, 3, 1, 2), texts).cpu(), epoch)


def _detector_in(model: nn.Module) -> GradCAMMixin:
    """The one detector that `model` is or holds. Raises InputError."""
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
    """For each of B images: `fake 0.93, is real`. `prob_fake` (B,); `label` (B,) 0 real and anything else fake."""
    texts = [f"fake {value:.2f}" for value in prob_fake.tolist()]
    if label is None or label.numel() != len(texts):
        return texts
    return [f"{text}, {_truth(number)}" for text, number in zip(texts, label.flatten().tolist(), strict=True)]


def _truth(label: float) -> str:
    """`is real`, `is fake`; of a fraction, as smoothing and mixing make it, the label itself."""
    fraction = isinstance(label, float) and not label.is_integer()
    return f"label {label:.2f}" if fraction else f"is {CLASS_NAMES[int(label != 0)].lower()}"


def grid(images: Tensor, drawn: Tensor, texts: Sequence[str]) -> Tensor:
    """Both (B, 3, H, W) uint8 → (3, rows, columns): each image above its drawing and its text, eight side by side."""
    width = images.shape[-1]
    drawn_texts = [text_line(text, width, LINE, LETTERS, centred=True) for text in texts]
    lines = [torch.from_numpy(line.copy()).permute(2, 0, 1) for line in drawn_texts]
    pairs = torch.cat([images, drawn, torch.stack(lines).to(images.device)], dim=2)
    missing = -len(pairs) % min(COLUMNS, len(pairs))
    padded = torch.cat([pairs, pairs.new_full((missing, *pairs.shape[1:]), 255)])
    rows = padded.split(min(COLUMNS, len(pairs)))
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
