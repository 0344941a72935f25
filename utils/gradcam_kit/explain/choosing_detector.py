"""Which map a detector draws: tried by cause on its own images, or named by its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.allowed import DEFAULT_IMAGES, TRANSPLANT
from ..engine.frozen import frozen_for_explaining
from ..engine.recipe import Recipe
from ..judge.choosing import TriedDetector, choose_map, in_batches, trial_images
from ..judge.verdict import Choice
from .base_detector import IMAGE, ExplainableDetector, image_of
from .capture import Capture
from .one_pass import check_images


class ChoosingDetector(ExplainableDetector):
    """Adds the choice of the map."""

    def gradcam_named(self) -> list[Recipe]:
        """The config's map of each layer; none where it leaves a choice."""
        recipe = self.gradcam.recipe
        if recipe.is_open or recipe.method == TRANSPLANT:
            return []
        return [recipe.at(layer) for layer in self.gradcam_layers()]

    def calibrate_gradcam(
        self,
        data_dicts: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        images: int = DEFAULT_IMAGES,
        batch_size: int = 32,
    ) -> Choice:
        """Choose the map to draw by cause, on images that the detector calls fake; the config then holds it.

        Args:
            data_dicts: batches as for `explain`; beside `image` they may hold `video`, a name for each image, and
                `paired_real` (B, 3, H, W), the real images that they were made from. One batch alone will do.
            images: at most so many that are called fake, and as many that are called real, are used: the first ones.
            batch_size: images per pass.

        Returns:
            The choice, which `gradcam_choice` keeps, with the table of all that was tried. Where the config names
            method and layers, these are judged and nothing changes. Nothing is drawn.

        Raises:
            InputError: no batch, or an unusable one.
        """
        batches = [data_dicts] if isinstance(data_dicts, Mapping) else data_dicts
        tried = self._tried(batch_size)
        given = trial_images(tried.margins, map(_checked, batches), images, _trial_target(self.gradcam.target))
        choice = choose_map(tried, given, self.gradcam_candidates(), self.gradcam_named())
        self.set_gradcam_choice(choice)
        return choice

    def set_gradcam_choice(self, choice: Choice) -> None:
        """Draw what was chosen from now on, where the config leaves a choice."""
        if self.gradcam.chooses:
            self.gradcam = replace(self.gradcam, recipe=self.gradcam.recipe.using(choice.used))
        self.gradcam_choice = choice

    def _tried(self, batch_size: int) -> TriedDetector:
        def margins(images: Tensor) -> Tensor:
            with frozen_for_explaining(self), torch.no_grad():
                read = [self.head_reader.read(self.evaluated({"image": part})) for part in images.split(batch_size)]
            return torch.cat([head.margin(prediction["cls"].float()) for prediction, head in read])

        def asked(images: Tensor, target: Sequence[str], **options: Any) -> Capture:
            return self.capture({"image": images}, target=list(target), **options)

        return TriedDetector(asked, margins, in_batches(batch_size))


def _checked(data_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    check_images(image_of(data_dict), IMAGE)
    return data_dict


def _trial_target(target: str) -> str:
    """Whose evidence is shown on images that are called fake, for the config's target."""
    return target if target in ("margin", "real") else "fake"
