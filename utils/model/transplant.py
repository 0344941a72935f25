"""A detector's decision explained by patch transplant, in place of a gradient."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from utils.cam.frozen import frozen_for_explaining
from utils.cam.maps import LayerMaps, refuse_non_finite
from utils.cam.targets import Target, score_weights
from utils.cam.tokens import Prediction
from utils.cam.transplant import CELLS, INPUT, PIXELS, TRANSPLANT, blurred, transplant_maps
from utils.errors import InputError
from utils.gradcam import Explanation, check_images, explained_names, wants_both

LEAST_BATCH = 16  # images a forward pass; where more are explained at once, twice as many as these


def explain_by_transplant(
    model: nn.Module,
    images: Tensor,
    references: Tensor | None,
    predict: Callable[[Tensor], Prediction],
    *,
    target: Target,
    label: Tensor | None,
    patches: tuple[int, int] | None,
    what: str,
) -> Explanation:
    """One map per image, named "input": the margin fake − real by patches, its sign turned where "real" is explained.

    Args:
        model: in evaluation mode for the call; weights and modes are put back.
        images: (B, 3, H, W) floating point, normalised.
        references: the real frames that they were made from, alike; None: blurred copies.
        predict: images → the detector's output, with the logits (B, 2) under "cls".
        target, label: as in `GradCAMMixin.explain`.
        patches: rows and columns; None, for a convolutional network, takes 16 × 16 cells.
        what: how an error calls the images.

    Raises:
        InputError: an unusable argument.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    check_images(images, what)
    if references is not None and references.shape != images.shape:
        raise InputError(
            f"data_dict['reference'] has shape {tuple(references.shape)}: expected {tuple(images.shape)}, one for each"
            " image"
        )
    size = (images.shape[2], images.shape[3])

    def margins(part: Tensor) -> Tensor:
        logits = predict(part)["cls"].float()
        return logits[:, 1] - logits[:, 0]

    with frozen_for_explaining(model), torch.no_grad():
        prediction = {name: value.detach() for name, value in predict(images).items() if isinstance(value, Tensor)}
        logits = prediction["cls"]
        refuse_non_finite(torch.isfinite(logits).all(dim=1), "the logits")
        other = blurred(images) if references is None else references
        worth = transplant_maps(margins, images, other, patches or CELLS, max(LEAST_BATCH, 2 * len(images)))
    refuse_non_finite(torch.isfinite(worth).flatten(1).all(dim=1), "the transplant map")
    if wants_both(target):
        names, signed = ["both"] * len(images), [worth, -worth]
    else:
        weights, names = score_weights(logits, target, label)
        sign = 2.0 * (weights[:, 1] > 0).float() - 1.0  # fake and margin weigh the logit of fake, real does not
        signed = [worth * sign.view(-1, 1, 1)]
    maps = {layer: LayerMaps.of(one, one.relu(), size) for layer, one in zip(explained_names([INPUT], target), signed)}
    return Explanation(prediction, names, maps, TRANSPLANT, PIXELS, backward="none", completeness={})
