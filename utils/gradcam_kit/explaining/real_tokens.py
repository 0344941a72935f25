"""A model's real tokens: those in a bank, and those that replace patches. `Bank` is public."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.allowed import AUTO
from ..base.errors import InputError
from ..engine.hooks import Tap
from ..engine.layers import MADE_OF_OTHERS, compared_blocks, exchanged_block, name_in_tower, site_of_layer
from ..engine.real.bank import FEWEST_IMAGES, MOST_IMAGES, TokenBank, thinned
from ..engine.real.contrast import CONTRASTS
from ..engine.real.exchange import Exchange, Seen, Skipped, seen_at, skippable
from ..engine.recipe import RESIDUAL, Recipe
from ..judge.choosing import InParts, TrialImages, TriedDetector
from ..judge.trial import TokenFill
from .capture import Capture
from .images import as_batch, as_batches, check_images
from .subject import Subject, subject_of

IMAGES = "images"  # in errors
ALIKE = 1e-3  # skipping blocks may change margins by this share of the largest one


def tried(subject: Subject, in_parts: InParts[Any], between: Callable[[], None] = lambda: None) -> TriedDetector:
    """Return the model's functions for a trial. `between` is called before each batch of margins, and may raise."""

    def margins(images: Tensor) -> Tensor:
        def work(part: slice) -> Tensor:
            between()
            return subject.margins(images[part])

        return torch.cat(in_parts(work, len(images))) if len(images) else torch.empty(0)

    def captured(
        images: Tensor, target: Sequence[str], videos: Sequence[Hashable], recipes: Sequence[Recipe]
    ) -> Capture:
        grid = subject.patches(images)
        size = None if grid is None else (grid.rows, grid.columns)
        return subject.capture({"image": images, "video": videos}, recipes, list(target), size)

    exchange = partial(token_fill, subject, in_parts) if subject.bank is not None else None
    return TriedDetector(captured, margins, in_parts, exchange)


def bank_of(subject: Subject, images: Tensor, videos: Sequence[Hashable]) -> TokenBank:
    """Build the bank of normalised images (M, 3, H, W) from `videos`."""
    tokens: dict[str, list[Tensor]] = {}
    for image in images.split(1):
        for seen in _seen(subject, image, bank_layers(subject)):
            patches = thinned(seen.patches).flatten(2).transpose(1, 2)
            tokens.setdefault(seen.tap.site.name, []).append(patches.half())
    return TokenBank({layer: torch.cat(found) for layer, found in tokens.items()}, tuple(videos))


class Bank(TokenBank):
    """The patch tokens of up to 16 images that a model calls real. Method "contrast" compares patches with them."""

    @classmethod
    def of(
        cls,
        model: Any,
        images: Any,
        videos: Sequence[Hashable] | None = None,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> Bank:
        """Build a bank from the images that the model calls real: at most MOST_IMAGES, one of each video first.

        Args:
            model, forward: as for `explain`.
            images: normalised images (B, 3, H, W), one batch or several. Labels are not needed.
            videos: the name of each image's video; an image is never compared with frames of its own video. None: each
                image is from another video.

        Raises:
            InputError: no image, or none that the model calls real.
        """
        batches = [as_batch(batch, IMAGES)["image"] for batch in as_batches(images, IMAGES)]
        if not batches:
            raise InputError("images is empty: give at least one batch")
        for batch in batches:
            check_images(batch, IMAGES)
        subject = subject_of(model, batches[0], forward)
        every = torch.cat(batches)
        margins = torch.cat([subject.margins(part) for part in batches])
        called_real = (margins < 0).nonzero().flatten().tolist()
        if not called_real:
            raise InputError(
                f"the model calls none of the {len(every)} images real: give real images that it recognises"
            )
        names = list(videos) if videos is not None else list(range(len(every)))
        chosen = [called_real[i] for i in one_of_each_video([names[i] for i in called_real])]
        made = bank_of(subject, every[chosen], [names[i] for i in chosen])
        return cls(made.tokens, made.videos)


def one_of_each_video(videos: Sequence[Hashable]) -> list[int]:
    """Select at most MOST_IMAGES images for a bank, one of each video first. Return their positions."""
    first = {video: i for i, video in reversed(list(enumerate(videos)))}.values()
    return sorted([*sorted(first), *(i for i in range(len(videos)) if i not in set(first))][:MOST_IMAGES])


def with_bank(subject: Subject, given: TrialImages) -> Subject:
    """Return `subject` with a bank of the trial's real images, if there are enough and it has none."""
    if subject.bank is not None or given.reals is None or len(given.reals) < FEWEST_IMAGES:
        return subject
    chosen = one_of_each_video(given.real_videos)
    return replace(subject, bank=bank_of(subject, given.reals[chosen], [given.real_videos[i] for i in chosen]))


def bank_layers(subject: Subject) -> tuple[str, ...]:
    """Return the layers whose tokens a bank keeps: those always compared, and those named for a contrast map."""
    compared = compared_blocks(subject.tower) if subject.tower.blocks else subject.map_layers().names
    compares = [one for one in (subject.recipe, *subject.recipes) if one.method in (*CONTRASTS, AUTO)]
    named = [layer for one in compares for layer in one.layers]
    others = (name_in_tower(subject.tower, one) for one in named if one not in (*MADE_OF_OTHERS, AUTO))
    return tuple(dict.fromkeys([*compared, *others]))


def real_tokens(subject: Subject, reals: Tensor, has_pair: Tensor | None = None) -> dict[str, Tensor]:
    """Return the tokens (B, C, h, w) of paired real images, by the bank's layers.

    `has_pair` (B,) bool: where it is False, the tokens are zero; None: each image has a pair.
    """
    there = [True] * len(reals) if has_pair is None else has_pair.cpu().tolist()
    rows = [i for i, one in enumerate(there) if one]
    positions = torch.tensor(rows, device=reals.device)
    found = {}
    for seen in _seen(subject, reals[positions], bank_layers(subject)):
        patches = seen.patches.to(torch.promote_types(seen.patches.dtype, torch.float32))
        tokens = patches.new_zeros(len(reals), *patches.shape[1:])
        tokens[positions.to(tokens.device)] = patches
        found[seen.tap.site.name] = tokens
    return found


def _seen(subject: Subject, images: Tensor, layers: Sequence[str]) -> list[Seen]:
    sites = [site_of_layer(subject.tower, layer, RESIDUAL) for layer in layers]
    grid = subject.patches(images)
    return seen_at(subject.tower, sites, grid, partial(subject.predict, {"image": images}), len(images))


def exchange_in(subject: Subject, captured: Capture) -> Exchange | None:
    """Return the exchange that `token_fill` needs, if this pass has read and compared the tokens there; else None."""
    tower = subject.tower
    layer = exchanged_block(tower) if tower.blocks else ""
    tokens, near = captured.tokens.get((layer, RESIDUAL)), captured.found.get(layer)
    if tokens is None or near is None or tokens.A.ndim != 3:
        return None
    site = site_of_layer(tower, layer, RESIDUAL)
    tap = Tap(site, tokens.A.transpose(0, 1) if site.batch_axis == 1 else tokens.A, None)
    return Exchange(Seen.of(tap, tokens.A, captured.grid), near.mean)


def token_fill(
    subject: Subject,
    in_parts: InParts[Any],
    images: Tensor,
    videos: Sequence[Hashable] | None,
    known: Exchange | None = None,
) -> TokenFill:
    """Return a fill: patches (n, h, w) bool → margins (n,) of `images` with these patches as their nearest real tokens.

    Patches are exchanged at a third of the depth. The blocks before it run once, if the tower allows skipping them, or
    not at all if the exchange is `known` from `exchange_in`.
    """
    bank, tower = subject.bank, subject.tower
    assert bank is not None
    names = subject.map_layers().names
    layer = exchanged_block(tower) if tower.blocks else names[min(2, len(names) - 1)]

    def prepare(part: slice) -> Exchange:
        (seen,) = _seen(subject, images[part], [layer])
        real = bank.nearest(layer, seen.patches, None if videos is None else videos[part]).mean
        return Exchange(seen, real, _skipped(subject, seen, real, images[part], layer) if tower.blocks else ())

    if known is not None:
        known = replace(known, skipped=_skipped(subject, known.seen, known.real, images, layer))
    parts: list[tuple[slice, Exchange]] = in_parts(lambda part: (part, known or prepare(part)), len(images))

    def margins(patches: Tensor, whose: Tensor) -> Tensor:
        found = []
        for part, exchange in parts:
            own = (whose >= part.start) & (whose < part.stop)
            first = part.start if known is None else 0  # of the images that are exchanged here
            size = part.stop - part.start
            for some, masks in zip(whose[own].split(size), patches[own].split(size), strict=True):
                on_tokens = F.interpolate(masks.unsqueeze(1).float(), exchange.real.shape[2:], mode="area")[:, 0]
                with exchange.made((some - first).to(images.device), on_tokens.to(images.device) >= 0.5):
                    found.append(subject.margins(images[some.to(images.device)]))
        return torch.cat(found)

    return margins


def _skipped(subject: Subject, seen: Seen, real: Tensor, images: Tensor, block: str) -> Sequence[Skipped]:
    """Return the blocks before `block`, unless skipping them changes the logits."""

    def find() -> Sequence[Skipped]:
        few = images[:2]
        skipped = skippable(subject.tower, block, partial(subject.predict, {"image": few}))
        usual = subject.margins(few)
        every = torch.arange(len(few), device=images.device)
        nowhere = torch.zeros(len(few), *real.shape[2:], dtype=torch.bool, device=images.device)
        with Exchange(seen, real, skipped).made(every, nowhere):
            again = subject.margins(few)
        alike = torch.allclose(again, usual, rtol=ALIKE, atol=ALIKE * float(usual.abs().max()))
        return skipped if alike else ()

    return subject.tower.once(("skipped", block), find)
