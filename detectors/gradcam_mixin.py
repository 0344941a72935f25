"""What makes a detector explainable: mix it into any detector whose `backbone` is a network of a known family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from torch import Tensor, nn

from utils.cam.heads import HeadReader
from utils.cam.layers import block_names
from utils.cam.targets import Target
from utils.cam.towers import Grid, family_of
from utils.errors import InputError
from utils.gradcam import Capture, Explanation, capture, check_images, explain_tower
from utils.model.gradcam_settings import GradCAMSettings, gradcam_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE = "data_dict['image']"  # in errors


class GradCAMMixin(nn.Module):
    """Adds `explain`, `generate_gradcam`, `show_gradcam`, `enable_gradcam` and `disable_gradcam` to a host detector.

    The detector calls `init_gradcam(config)` at the end of its constructor. Nothing is hooked outside of those calls:
    training and inference cost and give exactly what they did before.

    `enable_gradcam` and `disable_gradcam` switch the calls that draw, `generate_gradcam` and `show_gradcam`: while
    disabled they refuse. `explain`, which they rest on, always works, and with it what decides by itself when to draw
    (`utils.training_log.log_gradcam`).
    """

    backbone: Any  # the host's vision tower
    gradcam: GradCAMSettings

    def init_gradcam(self, config: Mapping[str, Any]) -> None:
        """Check and keep the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)

    @property
    def gradcam_enabled(self) -> bool:
        """Whether `generate_gradcam` and `show_gradcam` work."""
        return self.gradcam.enabled

    def enable_gradcam(self) -> None:
        """Allow heatmaps from now on."""
        self.gradcam = self.gradcam._replace(enabled=True)

    def disable_gradcam(self) -> None:
        """Refuse heatmaps from now on."""
        self.gradcam = self.gradcam._replace(enabled=False)

    @property
    def explained_tower(self) -> nn.Module:
        """The module that layer names are relative to."""
        return self.backbone

    def patch_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches for an image of that size; None for a convolutional network.

        A detector whose images fall into patches otherwise than its tower's family says overrides this.
        """
        grid = family_of(self.explained_tower).grid(self.explained_tower, height, width)
        return None if grid is None else (grid.rows, grid.columns)

    @property
    def head_reader(self) -> HeadReader:
        """How the logits are read: what the config says of their classes."""
        return HeadReader(type(self).__name__, self.gradcam.classes, self.gradcam.labels)

    def token_grid(self, height: int, width: int) -> Grid | None:
        """How tokens lie on an image of that size. A detector that adds tokens of its own overrides this."""
        patches, tower = self.patch_grid(height, width), self.explained_tower
        return None if patches is None else Grid(*patches, prefix=family_of(tower).prefix(tower))

    def gradcam_layers(self) -> list[str]:
        """The layers explained where a call names none: the config's, or else the tower's last block."""
        return list(self.gradcam.layers or block_names(self.explained_tower)[-1:])

    def explain(
        self,
        data_dict: Mapping[str, Tensor],
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
    ) -> Explanation:
        """Prediction and maps of one batch, from one forward pass and one backward pass. Give options by keyword.

        Args:
            data_dict: `image` (B, 3, H, W) floating point, normalised, on the model's device; for target "label" also
                `label` (B,).
            layers: module names relative to the tower; a block's name means what the block reads, at `site`; "fused"
                means the mean of the other layers' normalised maps.
            method: one of `utils.cam.methods.METHOD_NAMES`.
            target: one of `utils.cam.targets.TARGETS`, the name of a class, or one entry per image (such a name, or 0
                real / 1 fake). "both"
                makes two passes and gives every layer twice, as `<layer>_fake` and `<layer>_real`.
            site: "layer_norm1" or "residual".

        What is not given comes from the config.

        Raises:
            InputError: an unusable argument, or a layer that cannot be explained (LayerError); the model is untouched.
            NonFiniteMapError: NaN or infinity in the maps or logits of some images.
        """
        image, settings = _image(data_dict), self.gradcam
        return explain_tower(
            self,
            self.explained_tower,
            image,
            partial(self.forward, {"image": image}),
            layers=layers or self.gradcam_layers(),
            method=method or settings.method,
            site=site or settings.site,
            target=settings.target if target is None else target,
            label=data_dict.get("label"),
            grid=self.token_grid,
            pp_epsilon=settings.pp_epsilon,
            what=IMAGE,
            head=self.head_reader,
        )

    def capture(
        self,
        data_dict: Mapping[str, Tensor],
        *,
        layers: Sequence[str],
        methods: Sequence[str],
        sites: Sequence[str],
        target: Target,
        map_size: tuple[int, int] | None = None,
    ) -> Capture:
        """One forward and one backward pass that serve all `methods` at all `sites`. Arguments, errors: `explain`.

        `map_size`: (H, W) of the normalised maps, the image's where it is None.
        """
        image = _image(data_dict)
        check_images(image, IMAGE)
        height, width = image.shape[2:]
        return capture(
            self,
            self.explained_tower,
            partial(self.forward, {"image": image}),
            layers=layers,
            methods=methods,
            sites=sites,
            target=target,
            label=data_dict.get("label"),
            grid=self.token_grid(height, width),
            size=map_size or (height, width),
            head=self.head_reader._replace(batch=len(image)),
        )

    def generate_gradcam(
        self,
        data_dict: Mapping[str, Tensor],
        save_visualizations: bool = False,
        filename_prefix: str = "gradcam",
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
    ) -> dict[str, Tensor]:
        """Heatmaps of one batch: layer name as given → (B, H, W) float32 in [0, 1], detached, on the model's device.

        With `save_visualizations` also writes, per image i, `<prefix>_<layer>_sample<i>.png` and
        `<prefix>_comparison_sample<i>.png` into the config's `gradcam_save_dir`. Arguments and errors as in `explain`;
        InputError while Grad-CAM is disabled.
        """
        self._refuse_while_disabled()
        explanation = self.explain(data_dict, layers=layers, method=method, target=target, site=site)
        if save_visualizations:
            from utils.results.batch_images import save_loose_maps  # needs OpenCV

            save_loose_maps(Path(self.gradcam.save_dir), filename_prefix, data_dict["image"], explanation, self.gradcam)
        return {name: maps.normalised for name, maps in explanation.layers.items()}

    def show_gradcam(
        self,
        data_dict: Mapping[str, Tensor],
        layers: Sequence[str] | None = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
    ) -> Figure:
        """The batch as a matplotlib figure, for a notebook: one row per image, the original and each layer's overlay.

        Arguments and errors as in `explain`; InputError while Grad-CAM is disabled, and where matplotlib is missing.
        """
        from utils.results.batch_images import explanation_figure  # needs OpenCV and matplotlib

        self._refuse_while_disabled()
        explanation = self.explain(data_dict, layers=layers, method=method, target=target, site=site)
        return explanation_figure(data_dict["image"], explanation, self.gradcam)

    def _refuse_while_disabled(self) -> None:
        if not self.gradcam_enabled:
            raise InputError(
                "Grad-CAM is disabled: call model.enable_gradcam() first, or set gradcam_enabled: true in the config"
            )


def _image(data_dict: Mapping[str, Tensor]) -> Tensor:
    image = data_dict.get("image")
    if image is None:
        raise InputError(f"{IMAGE} is missing: give {{'image': tensor of shape (B, 3, H, W)}}")
    return image
