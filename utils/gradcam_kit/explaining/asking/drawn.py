"""The maps that a detector draws if a call names none: the config's, the chosen ones, or the first candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from ...base.allowed import TRANSPLANT
from ...base.errors import InputError
from ...engine.recipe import Recipe, explained_names, names_of, one_per_layer
from ...judge.transplant import INPUT
from ...settings.config_values import GradCAMSettings
from ..clips.choosing import clip_candidates
from ..clips.subject import ClipSubject
from ..subject import Subject


class DrawnMaps(nn.Module):
    """The part of `GradCAMMixin` that decides whether to draw maps, and which."""

    gradcam: GradCAMSettings
    clip_size: int | None
    noise: Callable[[], Tensor]  # a few random images or clips
    as_subject: Callable[[], Subject]  # this detector for code that explains images
    as_clip_subject: Callable[[], ClipSubject]  # this detector for code that explains clips

    @property
    def gradcam_enabled(self) -> bool:
        """Whether `generate_gradcam` and `show_gradcam` work."""
        return self.gradcam.enabled

    def enable_gradcam(self) -> None:
        """Enable `generate_gradcam` and `show_gradcam`."""
        self.gradcam = replace(self.gradcam, enabled=True)

    def disable_gradcam(self) -> None:
        """Disable `generate_gradcam` and `show_gradcam`."""
        self.gradcam = replace(self.gradcam, enabled=False)

    def _refuse_while_disabled(self) -> None:
        if not self.gradcam_enabled:
            raise InputError(
                "Grad-CAM is disabled: call model.enable_gradcam() first, or set gradcam_enabled: true in the config"
            )

    def default_layers(self) -> list[str]:
        """Return the layers to explain if only a method is named; see `Subject.default_layers`."""
        return list(self.as_subject().default_layers())

    def gradcam_layers(self) -> list[str]:
        """Return the layers to explain if a call names none: the config's, the chosen one, or the last block.

        Only "input" for method "transplant", which reads no layer.
        """
        if self.gradcam.recipe.method == TRANSPLANT:
            return [INPUT]
        return list(dict.fromkeys(layer for one in self.drawn_recipes() for layer in one.layers))

    def drawn_recipes(self) -> list[Recipe]:
        """Return the recipes to draw if a call names nothing, each with its layers."""
        subject = self.as_subject() if self.clip_size is None else self.as_clip_subject()
        return list(dict.fromkeys(map(subject.resolved, subject.all_drawn())))

    def map_names(self) -> list[str]:
        """Return the names of the maps in `Explanation.layers` if a call names nothing, for the configured target."""
        target = self.gradcam.target
        if self.gradcam.recipe.method == TRANSPLANT:
            return explained_names([INPUT], target)
        recipes = self.drawn_recipes()
        every = [(one, layer) for one in recipes for layer in explained_names(one.layers, target)]
        return names_of(every, one_per_layer(recipes, self.gradcam.recipe))

    def drawn_settings(self) -> GradCAMSettings:
        """Return the config's settings; a map that is still to be chosen is replaced by `Subject.drawn`."""
        settings = self.gradcam
        if self.clip_size is not None:
            return replace(settings, recipe=self.as_clip_subject().resolved(settings.recipe))
        return replace(settings, recipe=self.as_subject().drawn()) if settings.needs_choice else settings

    def gradcam_candidates(self) -> list[Recipe]:
        """Return the candidates, restricted by the config; the first is the fallback."""
        if self.clip_size is not None:
            return clip_candidates(self.as_clip_subject())
        return self.as_subject().candidates()

    def gradcam_named(self) -> list[Recipe]:
        """Return the config's recipes, one per layer; none if it leaves a choice."""
        if self.gradcam.needs_choice or self.gradcam.recipe.method == TRANSPLANT:
            return []
        return [one.at(layer) for one in self.drawn_recipes() for layer in one.layers]
