"""The maps that are measured: methods × sites × layers × backward passes, and what is measured here and not offered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.yardstick.heads import BATCH
from benchmarks.yardstick.towers import Case
from utils.gradcam_kit.base.allowed import BACKWARDS, SITES
from utils.gradcam_kit.engine.backward import Activations, backward_rules
from utils.gradcam_kit.engine.layers import SUM, block_names
from utils.gradcam_kit.engine.methods import ATTENTION_METHODS
from utils.gradcam_kit.engine.recipe import sites_of

TOKEN_METHODS = ("gradcam", "hirescam", "layercam", "gradcam++")
STEPS = 16  # of integrated gradients
GAMMAS = (0.3, 0.6, 1.0)

Maps = dict[str, Tensor]  # "method, site, layer, backward" → raw maps (N, h, w)


def all_maps(case: Case) -> Maps:
    """Every candidate's raw maps of the logit "fake" for the case's N fakes, on the CPU."""
    summed = [*TOKEN_METHODS, *(name for name, method in ATTENTION_METHODS.items() if method.sum_of is not None)]
    others = [name for name in ATTENTION_METHODS if name not in summed]
    found: Maps = {}
    for backward in BACKWARDS:
        found.update(_maps(case, summed, [*_layers(case), SUM], backward, nullcontext()))
        found.update(_maps(case, others, _layers(case), backward, nullcontext()))
    return found


def secant_maps(case: Case) -> Maps:
    """The balanced backward pass with the activation's secant instead of its derivative."""
    model = case.detector.model
    rules = backward_rules(model.tower, "balanced", Activations(by_secant=True))
    return _maps(case, ("gradcam", "hirescam"), [*_layers(case), SUM], "plain", rules, "balanced, secant")


def _layers(case: Case) -> list[str]:
    blocks = block_names(case.detector.model.explained_tower)
    return [blocks[0], blocks[len(blocks) // 2], blocks[-1]]


def _maps(
    case: Case,
    methods: Sequence[str],
    layers: list[str],
    backward: str,
    rules: AbstractContextManager[Any],
    name: str = "",
) -> Maps:
    parts: dict[str, list[Tensor]] = {}
    short = dict(zip(layers, ("first", "middle", "last", "sum"), strict=True))
    with rules as constants, constants or nullcontext():
        for pixels in case.fakes.split(BATCH):
            captured = case.detector.model.capture(
                {"image": case.detector.normalise(pixels)},
                layers=layers,
                methods=methods,
                sites=SITES,
                target="fake",
                backward=backward,
            )
            for method in methods:
                for site in sites_of(method, SITES):
                    for layer, maps in captured.maps(method, site).items():
                        key = f"{method}, {site}, {short[layer]}, {name or backward}"
                        parts.setdefault(key, []).append(maps.raw.float())
    return {key: torch.cat(raw) for key, raw in parts.items()}


def finer_cam(case: Case) -> Maps:
    """Finer-CAM (arXiv 2501.11309): HiResCAM of the score fake − γ real. γ = 0 is target fake, 1 is margin."""
    signed: dict[str, list[Tensor]] = {"fake": [], "real": []}
    for pixels in case.fakes.split(BATCH):
        for target, parts in signed.items():
            captured = case.detector.model.capture(
                {"image": case.detector.normalise(pixels)},
                layers=[SUM],
                methods=["hirescam"],
                sites=["residual"],
                target=target,
                backward="balanced",
            )
            parts.append(captured.maps("hirescam", "residual")[SUM].signed.float())
    fake, real = (torch.cat(parts) for parts in signed.values())
    return {f"hirescam, residual, sum, balanced, γ {g:g}": (fake - g * real).relu() for g in GAMMAS}


def integrated_gradients(case: Case) -> Maps:
    """Pixels, from the paired real frame to the fake; the attribution of a patch is its pixels' sum (2017, eq. 1)."""
    detector, found = case.detector, []
    side = case.fakes.shape[-1]
    grid = detector.model.patch_grid(side, side)
    for fakes, reals in zip(case.fakes.split(BATCH), case.reals.split(BATCH), strict=True):
        image, baseline = detector.normalise(fakes), detector.normalise(reals)
        gradient = torch.zeros_like(image)
        for step in range(STEPS):
            at = (baseline + (step + 0.5) / STEPS * (image - baseline)).requires_grad_()
            score = detector.model({"image": at}, inference=True)["cls"][:, 1].sum()
            gradient += torch.autograd.grad(score, at)[0] / STEPS
        pixels = ((image - baseline) * gradient).sum(dim=1)
        patches = torch.nn.functional.adaptive_avg_pool2d(pixels.unsqueeze(1), grid).squeeze(1)
        found.append(patches.relu().detach())
    return {"integrated gradients from the real frame": torch.cat(found)}
