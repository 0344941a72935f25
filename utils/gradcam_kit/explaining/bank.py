"""A bank made by hand: of images that the model calls real, for method "contrast" in Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..engine.real.bank import TokenBank
from .images import as_batch, as_batches, check_images
from .real_tokens import bank_of, one_of_each_video
from .subject import subject_of

IMAGES = "images"  # in errors


class Bank(TokenBank):
    """The patch tokens of up to 16 images that a model calls real: what method "contrast" compares patches with."""

    @classmethod
    def of(
        cls,
        model: Any,
        images: Any,
        videos: Sequence[Hashable] | None = None,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> Bank:
        """The bank of those of `images` that the model calls real, at most MOST_IMAGES, one of each video first.

        Args:
            model, forward: as for `explain`.
            images: (B, 3, H, W), normalised as the model wants them; a batch, or several. Labels are not needed.
            videos: a name for each image; an image is never compared with frames of its own video. None: each image is
                a video of its own.

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
                f"none of the {len(every)} images is called real by the model: give real images that it recognises"
            )
        names = list(videos) if videos is not None else list(range(len(every)))
        chosen = [called_real[i] for i in one_of_each_video([names[i] for i in called_real])]
        made = bank_of(subject, every[chosen], [names[i] for i in chosen])
        return cls(made.tokens, made.videos)
