"""What makes a detector explainable: mix it into any detector whose `backbone` is a CLIP vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor, nn

from utils.cam.layers import block_names
from utils.cam.maps import refuse_non_finite_logits
from utils.cam.targets import Target, wants_both
from utils.errors import InputError
from utils.gradcam import Explanation, OnePass, both_classes, run_once
from utils.model.gradcam_settings import GradCAMSettings, gradcam_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GradCAMMixin:
    """Adds `explain`, `generate_gradcam`, `enable_gradcam` and `disable_gradcam` to a host detector.

    The detector calls `init_gradcam(config)` at the end of its constructor. Nothing is hooked outside of those calls:
    training and inference cost and give exactly what they did before.
    """

    backbone: Any  # the host's vision tower
    gradcam: GradCAMSettings
    gradcam_enabled: bool

    def init_gradcam(self, config: dict[str, Any]) -> None:
        """Check and keep the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)
        self.gradcam_enabled = self.gradcam.enabled

    def enable_gradcam(self) -> None:
        """Allow heatmaps from now on."""
        self.gradcam_enabled = True

    def disable_gradcam(self) -> None:
        """Refuse heatmaps from now on."""
        self.gradcam_enabled = False

    @property
    def explained_tower(self) -> nn.Module:
        """The module that layer names are relative to."""
        return self.backbone

    def patch_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches for a picture of that size."""
        patch = int(self.explained_tower.config.patch_size)  # type: ignore[union-attr,arg-type]  # a CLIP tower's config
        return height // patch, width // patch

    def gradcam_layers(self) -> list[str]:
        """The layers explained where a call names none: the config's, or else the tower's last block."""
        return list(self.gradcam.layers or block_names(self.explained_tower)[-1:])

    def gradcam_site(self) -> str:
        """Where a block's name reads its tokens: "layer_norm1" or "residual"."""
        return self.gradcam.site

    def explain(
        self,
        data_dict: dict[str, Tensor],
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
    ) -> Explanation:
        """Prediction and maps of one batch, from one forward pass and one backward pass.

        Args:
            data_dict: `image` (B, 3, H, W) floating point, normalised, on the model's device; for target "label" also
                `label` (B,).
            layers: module names relative to the tower; a block's name means what the block reads, at `site`; "fused"
                means the mean of the other layers' normalised maps.
            method: one of `utils.cam.methods.METHOD_NAMES`.
            target: one of `utils.cam.targets.TARGETS`, or one entry a picture (such a name, or a class 0 / 1). "both"
                makes two passes and gives every layer twice, as `<layer>_fake` and `<layer>_real`.
            site: "layer_norm1" or "residual". What is not given comes from the config.

        Raises:
            InputError: an unusable argument, or a layer that cannot be explained (LayerError); the model is untouched.
            NonFiniteMapError: NaN or infinity in the maps or logits of some pictures.
        """
        target = self.gradcam.target if target is None else target
        if wants_both(target):
            return both_classes(*(self.explain(data_dict, layers, method, one, site) for one in ("fake", "real")))
        method, site = method or self.gradcam.method, site or self.gradcam.site
        one_pass = self.run_once(data_dict, layers or self.gradcam_layers(), [method], [site], target)
        maps = one_pass.maps(method, site, self.gradcam.pp_epsilon)
        refuse_non_finite_logits(one_pass.prediction["cls"])
        return Explanation(one_pass.prediction, one_pass.target, maps)

    def run_once(
        self,
        data_dict: dict[str, Tensor],
        layers: Sequence[str],
        methods: Sequence[str],
        sites: Sequence[str],
        target: Target,
        map_size: tuple[int, int] | None = None,
    ) -> OnePass:
        """One forward and one backward pass that serve all `methods` at all `sites`. Arguments, errors: `explain`.

        `map_size`: (H, W) of the normalised maps, the picture's where it is None.
        """
        image = checked_image(data_dict)
        grid = self.patch_grid(image.shape[2], image.shape[3])
        return run_once(
            self,  # type: ignore[arg-type]  # mixed into an nn.Module
            self.explained_tower,
            lambda: self.forward({"image": image}),  # type: ignore[attr-defined]  # the host detector's forward
            layers,
            methods,
            sites,
            target,
            data_dict.get("label"),
            grid,
            map_size or (image.shape[2], image.shape[3]),
        )

    def generate_gradcam(
        self,
        data_dict: dict[str, Tensor],
        save_visualizations: bool = False,
        filename_prefix: str = "gradcam",
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
    ) -> dict[str, Tensor]:
        """Heatmaps of one batch: layer name as given → (B, H, W) float32 in [0, 1], detached, on the model's device.

        With `save_visualizations` also writes, per picture i, `<prefix>_<layer>_sample<i>.png` and
        `<prefix>_comparison_sample<i>.png` into the config's `gradcam_save_dir`. Arguments and errors as in `explain`;
        InputError while Grad-CAM is disabled.
        """
        if not self.gradcam_enabled:
            raise InputError(
                "Grad-CAM is disabled: call model.enable_gradcam() first, or set gradcam_enabled: true in the config"
            )
        explanation = self.explain(data_dict, layers=layers, method=method, target=target)
        if save_visualizations:
            from utils.results.batch_pictures import save_loose_maps

            save_loose_maps(Path(self.gradcam.save_dir), filename_prefix, data_dict["image"], explanation, self.gradcam)
        return {name: maps.normalised for name, maps in explanation.layers.items()}

    def show_gradcam(
        self,
        data_dict: dict[str, Tensor],
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
    ) -> Figure:
        """The batch as a matplotlib figure, for a notebook: one row a picture, the original and every layer's overlay.

        Arguments and errors as in `explain`; InputError where matplotlib is missing.
        """
        from utils.results.batch_pictures import explanation_figure  # pulls in OpenCV and matplotlib

        explanation = self.explain(data_dict, layers=layers, method=method, target=target)
        return explanation_figure(data_dict["image"], explanation, self.gradcam)


def checked_image(data_dict: dict[str, Tensor]) -> Tensor:
    """`data_dict["image"]` if it is a batch of finite pictures. Raises InputError saying what is wrong."""
    image = data_dict.get("image")
    if not isinstance(image, Tensor):
        raise InputError("data_dict['image'] is missing: give {'image': tensor of shape (B, 3, H, W)}")
    if image.ndim == 5:
        raise InputError(
            f"data_dict['image'] has shape {tuple(image.shape)}: clips of frames are not explained as such;"
            " give one batch of frames (B, 3, H, W), for example image.flatten(0, 1)"
        )
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise InputError(
            f"data_dict['image'] has shape {tuple(image.shape)} and type {image.dtype}:"
            " expected normalised floating point pictures of shape (B, 3, H, W)"
        )
    if image.shape[0] == 0:
        raise InputError("data_dict['image'] is an empty batch: give at least one picture")
    finite = torch.isfinite(image).flatten(1).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise InputError(
            f"data_dict['image'] holds NaN or infinite pixels in picture(s) {bad}: check how they were normalised"
        )
    return image
