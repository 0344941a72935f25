"""A detector's decision explained by patch transplant, in place of a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..base.allowed import TRANSPLANT
from ..base.errors import InputError
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import ANY_MODEL, HeadReader
from ..engine.maps import LayerMaps, refuse_non_finite
from ..engine.targets import Target, score_weights
from ..engine.transplant import CELLS, INPUT, PIXELS, blurred, transplant_maps
from .explanation import Explanation
from .one_pass import explained_names, wants_both

LEAST_BATCH = 16  # images a forward pass; where more are explained at once, twice as many as these


def explain_by_transplant(
    model: nn.Module,
    images: Tensor,
    references: Tensor | None,
    predict: Callable[[Tensor], Any],
    *,
    target: Target,
    label: Tensor | None,
    patches: tuple[int, int] | None,
    head: HeadReader = ANY_MODEL,
) -> Explanation:
    """One map per image, named "input": the margin fake − real by patches, its sign turned where "real" is explained.

    Args:
        model: in evaluation mode for the call; weights and modes are put back.
        images: (B, 3, H, W) floating point, normalised.
        references: the real frames that they were made from, alike; None: blurred copies.
        predict: images → the detector's output, as `head` reads it.
        target, label: as in `GradCAMMixin.explain`.
        patches: rows and columns; None, for a convolutional network, takes 16 × 16 cells.

    Raises:
        InputError: an unusable argument.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    if references is not None and references.shape != images.shape:
        raise InputError(
            f"data_dict['reference'] has shape {tuple(references.shape)}: expected {tuple(images.shape)}, one for each"
            " image"
        )
    size = (images.shape[2], images.shape[3])

    def margins(part: Tensor) -> Tensor:
        output, kind = head._replace(batch=len(part)).read(predict(part))
        return kind.margin(output["cls"].float())

    with frozen_for_explaining(model), torch.no_grad():
        output, kind = head._replace(batch=len(images)).read(predict(images))
        prediction = {name: value.detach() for name, value in output.items()}
        logits = prediction["cls"]
        refuse_non_finite(torch.isfinite(logits).all(dim=1), "the logits")
        other = blurred(images) if references is None else references
        worth = transplant_maps(margins, images, other, patches or CELLS, max(LEAST_BATCH, 2 * len(images)))
    refuse_non_finite(torch.isfinite(worth).flatten(1).all(dim=1), "the transplant map")
    if wants_both(target):
        names, signed = ["both"] * len(images), [worth, -worth]
    else:
        _, names = score_weights(logits, target, label, kind)
        sign = worth.new_tensor([-1.0 if name == "real" else 1.0 for name in names])
        signed = [worth * sign.view(-1, 1, 1)]
    maps = {
        layer: LayerMaps.of(one, one.relu(), size)
        for layer, one in zip(explained_names([INPUT], target), signed, strict=True)
    }
    return Explanation(prediction, kind, names, maps, TRANSPLANT, PIXELS, "none", {}, images)
