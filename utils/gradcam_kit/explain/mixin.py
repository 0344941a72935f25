"""What makes a detector explainable: mix it into any detector whose `backbone` is a network of a known family."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..base.allowed import AUTO, TRANSPLANT
from ..base.errors import InputError
from ..engine.checks import Checks
from ..engine.layers import as_names
from ..engine.recipe import Recipe
from ..engine.targets import Target
from ..settings.gradcam_settings import GradCAMSettings
from .base_detector import IMAGE, image_of
from .choosing_detector import ChoosingDetector
from .explanation import UNTRAINED, Explanation, Look
from .one_pass import check_pixels, check_shape, explain_tower
from .pending import Pending
from .transplant_explanation import explain_by_transplant
from .untrained import weight_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 8  # times the largest value of a normalised image: beyond it, pixels were not normalised


class GradCAMMixin(ChoosingDetector):
    """Adds `explain`, `generate_gradcam`, `show_gradcam`, `enable_gradcam` and `disable_gradcam` to a host detector.

    The detector calls `init_gradcam(config)` at the end of its constructor. Nothing is hooked outside of those calls:
    training and inference cost and give exactly what they did before.

    `enable_gradcam` and `disable_gradcam` switch the calls that draw, `generate_gradcam` and `show_gradcam`: while
    disabled they refuse. `explain`, which they rest on, always works, and with it what decides by itself when to draw
    (`explain.training_log.log_gradcam`).
    """

    def explain(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        layers: str | int | Sequence[str | int] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
        completeness: bool = True,
    ) -> Explanation:
        """Prediction and maps of one batch, from one forward pass and one backward pass. Give options by keyword.

        Args:
            data_dict: `image` (B, 3, H, W) floating point, normalised, on the model's device; for target "label" also
                `label` (B,); for method "transplant" also `reference`, as `image`: the real frames that the images
                were made from, blurred copies where it is not given. A tensor alone counts as `image`.
            layers: module names relative to the tower, or numbers of blocks (-1: the last); one alone will do.
                A block's name means what the block reads, at `site`; "fused" means the mean of the other layers'
                normalised maps, "sum" the sum of the raw maps of all blocks.
            method: one of `engine.methods.METHOD_NAMES`, or "auto": the map that `calibrate_gradcam` has chosen or,
                before that, the first of `gradcam_candidates`; or "transplant": two forward passes for each patch and
                no backward pass, one map of the layer "input" whatever `layers` and `site` say.
            target: one of `engine.targets.TARGETS`, the name of a class, or one entry per image (such a name, or 0
                real / 1 fake). "both"
                makes two passes and gives every layer twice, as `<layer>_fake` and `<layer>_real`.
            site: "layer_norm1" or "residual".
            backward: "plain" or "balanced", which holds attention weights, norms and channel gates constant.
            completeness: with "balanced", test whether each block's shares add up, by a second backward pass.

        What is not given comes from the config. Where that says "auto" and `calibrate_gradcam` has not been called, a
        call that names nothing gets the first of `gradcam_candidates`. Where it says nothing, or the call names the
        layers or the method, it is the plain method behind the block's first norm, by default Grad-CAM and the last
        block.

        Raises:
            InputError: an unusable argument, or a layer that cannot be explained (LayerError); the model is untouched.
            NonFiniteMapError: NaN or infinity in the maps or logits of some images.
        """
        explained = partial(
            self.explained, _as_mapping(data_dict), layers, method, target, site, backward, completeness
        )
        return replace(Pending(explained).result(), untrained=self._is_untrained())

    def explained(
        self,
        data_dict: Mapping[str, Tensor],
        layers: str | int | Sequence[str | int] | None,
        method: str | None,
        target: Target | None,
        site: str | None,
        backward: str | None,
        completeness: bool,
        checks: Checks,
    ) -> Explanation:
        """As `explain`, but what the device has to say first is left in `checks`: see `explain.pending`."""
        image = image_of(data_dict)
        check_shape(image, IMAGE)
        check_pixels(image, IMAGE, checks, self._refuse_pixels)
        if (method or self.gradcam.recipe.method) == TRANSPLANT:
            found = explain_by_transplant(
                self,
                image,
                data_dict.get("reference"),
                lambda images: self.evaluated({"image": images}),
                target=self.gradcam.target if target is None else target,
                label=data_dict.get("label"),
                patches=self.patch_grid(image.shape[2], image.shape[3]),
                head=self.head_reader,
            )
            return replace(found, look=self._look())
        layers = as_names(layers) if layers is not None else None
        settings = self._settings_for(layers, method)
        recipe = Recipe(
            settings.recipe.method if method in (None, AUTO) else method,
            layers or settings.recipe.layers or self.default_layers(),
            site or settings.recipe.site,
            backward or settings.recipe.backward,
        )
        found = explain_tower(
            self,
            self.explained_tower,
            image,
            partial(self.evaluated, data_dict),
            layers=list(recipe.layers),
            method=recipe.method,
            site=recipe.site,
            target=settings.target if target is None else target,
            label=data_dict.get("label"),
            grid=self.token_grid,
            pp_epsilon=settings.pp_epsilon,
            backward=recipe.backward,
            completeness=completeness,
            head=self.head_reader,
            backward_precision=settings.backward_precision,
            checks=checks,
        )
        return replace(found, look=self._look())

    def _look(self) -> Look:
        return Look(self.gradcam.mean, self.gradcam.std, self.gradcam.colormap, self.gradcam.signed)

    def _is_untrained(self) -> bool:
        """Whether the weights are still those of the constructor, which is said once."""
        if self.weights_at_first is None:
            return False
        if weight_versions(self) != self.weights_at_first:
            self.weights_at_first = None
            return False
        if not self.said_untrained:
            self.said_untrained = True
            warnings.warn(f"{UNTRAINED}; utils.gradcam.load loads a checkpoint", stacklevel=3)
        return True

    def _refuse_pixels(self, least: float, largest: float) -> None:
        """Raises InputError for images of these values, if they were not normalised."""
        ends = [abs((end - m) / s) for m, s in zip(self.gradcam.mean, self.gradcam.std, strict=True) for end in (0, 1)]
        if least >= 0 and FAR * max(ends) < largest <= 255:
            raise InputError(
                f"{IMAGE} holds values of up to {largest:.4g}, which are pixels of 0 to 255: give (x / 255 - mean) /"
                f" std, of which the largest is {max(ends):.3g}; utils.gradcam.read_images does it"
            )

    def _settings_for(self, layers: Sequence[str] | None, method: str | None) -> GradCAMSettings:
        """The settings behind a call that names these, with nothing left to be chosen."""
        settings = self.gradcam
        if method == AUTO and not layers and (settings.says_nothing or not settings.chooses):
            chosen = self.gradcam_choice.used if self.gradcam_choice else self.gradcam_candidates()[0]
            return replace(settings, recipe=chosen)
        if not settings.chooses or (not layers and method in (None, AUTO)):
            return self.drawn_settings()
        return replace(settings, recipe=settings.recipe.closed())

    def generate_gradcam(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        save_visualizations: bool = False,
        filename_prefix: str = "gradcam",
        layers: str | int | Sequence[str | int] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
    ) -> dict[str, Tensor]:
        """Heatmaps of one batch: layer name as given → (B, H, W) float32 in [0, 1], detached, on the model's device.

        With `save_visualizations` also writes, per image i, `<prefix>_<layer>_sample<i>.png` and
        `<prefix>_comparison_sample<i>.png` into the config's `gradcam_save_dir`. Arguments and errors as in `explain`;
        InputError while Grad-CAM is disabled.
        """
        self._refuse_while_disabled()
        explanation = self.explain(data_dict, layers=layers, method=method, target=target, site=site, backward=backward)
        if save_visualizations:
            explanation.save(self.gradcam.save_dir, filename_prefix)
        return {name: maps.normalised for name, maps in explanation.layers.items()}

    def show_gradcam(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        layers: str | int | Sequence[str | int] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
    ) -> Figure:
        """The batch as a matplotlib figure, for a notebook: one row per image, the original and each layer's overlay.

        Arguments and errors as in `explain`; InputError while Grad-CAM is disabled, and where matplotlib is missing.
        """
        self._refuse_while_disabled()
        return self.explain(data_dict, layers=layers, method=method, target=target, site=site, backward=backward).show()

    def _refuse_while_disabled(self) -> None:
        if not self.gradcam_enabled:
            raise InputError(
                "Grad-CAM is disabled: call model.enable_gradcam() first, or set gradcam_enabled: true in the config"
            )


def _as_mapping(data_dict: Any) -> Mapping[str, Tensor]:
    """What `explain` was given; a tensor alone counts as the image. Raises InputError for anything else."""
    if isinstance(data_dict, Tensor):
        return {"image": data_dict}
    if not hasattr(data_dict, "get"):
        raise InputError(
            f"data_dict is {type(data_dict).__name__}: give a tensor (B, 3, H, W), or {{'image': such a tensor}};"
            " utils.gradcam.read_images makes one from files"
        )
    return data_dict
