"""The public class Bank: tokens of real images for method "contrast" and verdicts."""

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
            videos: a name per image; an image is never compared with frames of its own video. None: each image counts
                as its own video.

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
