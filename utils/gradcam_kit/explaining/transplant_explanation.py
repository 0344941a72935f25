"""Explaining by patch transplant instead of a gradient."""

from __future__ import annotations

import torch

from ..base.allowed import TRANSPLANT
from ..base.errors import InputError
from ..engine.checks import Checks
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import Target, score_weights, wants_both
from ..engine.maps import LayerMaps, refuse_non_finite
from ..engine.recipe import Recipe, explained_names
from ..judge.transplant import CELLS, INPUT, PIXELS, blurred, transplant_maps
from .explanation import Explanation, RecipeMaps
from .images import Batch
from .subject import Subject

LEAST_BATCH = 16  # minimum images per forward pass; otherwise twice the batch


def explain_by_transplant(subject: Subject, batch: Batch, target: Target) -> Explanation:
    """Compute one map per image, named "input": the margin fake − real by patches, negated for target "real".

    Args:
        subject: it is in evaluation mode during the call; weights and modes are restored.
        batch: `image` (B, 3, H, W) floating point, normalised; optional `reference`, the original real frames in the
            same shape, else blurred copies; `label` (B,) for target "label".
        target: as in `explaining.api.explain`.

    A network without a patch grid uses 16 × 16 cells.

    Raises:
        InputError: an unusable argument.
        NonFiniteMapError: NaN or infinity in the maps or logits of some images.
    """
    images, references, head = batch["image"], batch.get("reference"), subject.head
    if references is not None and references.shape != images.shape:
        raise InputError(
            f"data_dict['reference'] has shape {tuple(references.shape)}: expected {tuple(images.shape)}, one per image"
        )
    size = (images.shape[2], images.shape[3])
    grid = subject.patches(images)
    patches = CELLS if grid is None else (grid.rows, grid.columns)

    with frozen_for_explaining(subject.tower.model, subject.tower.structure), torch.no_grad():
        output, kind = head._replace(batch=len(images)).read(subject.run({"image": images}))
        prediction = {name: value.detach() for name, value in output.items()}
        logits = prediction["cls"]
        checks = Checks()
        refuse_non_finite(logits, "the logits", checks)
        checks.read()
        other = blurred(images) if references is None else references
        worth = transplant_maps(subject.margins, images, other, patches, max(LEAST_BATCH, 2 * len(images)))
    checks = Checks()
    refuse_non_finite(worth, "the transplant map", checks)
    names, signed = ["both"] * len(images), [worth, -worth]
    if not wants_both(target):
        _, names = score_weights(logits, target, batch.get("label"), kind, checks)
    checks.read()
    if not wants_both(target):
        sign = worth.new_tensor([-1.0 if name == "real" else 1.0 for name in names])
        signed = [worth * sign.view(-1, 1, 1)]
    maps = {
        layer: LayerMaps.of(one, one.relu(), size)
        for layer, one in zip(explained_names([INPUT], target), signed, strict=True)
    }
    made = RecipeMaps(Recipe(TRANSPLANT, INPUT, PIXELS, "none"), maps, PIXELS, {})
    return Explanation(prediction=prediction, head=kind, target=names, made=(made,), images=images, look=subject.look)
