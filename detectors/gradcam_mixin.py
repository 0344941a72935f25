"""What makes a detector explainable: mix it into any detector whose `backbone` is a network of a known family."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.allowed import AUTO, DEFAULT_IMAGES, TRANSPLANT
from utils.cam.frozen import frozen_for_explaining
from utils.cam.heads import HeadReader
from utils.cam.layers import as_names, block_names
from utils.cam.methods import sites_of
from utils.cam.spatial_layers import SpatialLayer, last_spatial_layer
from utils.cam.targets import Target
from utils.cam.towers import Grid, family_of, unwrapped
from utils.cam.transplant import INPUT
from utils.choice.candidates import NO_MAPS, Candidate, MapLayers, Named, map_layers, shortlist
from utils.choice.choosing import TriedDetector, choose_map, in_batches, trial_images
from utils.choice.verdict import Choice
from utils.errors import InputError
from utils.explaining.explanation import UNTRAINED, Explanation, Look
from utils.gradcam import Capture, capture, check_images, explain_tower
from utils.model.config_values import Section
from utils.model.gradcam_settings import GradCAMSettings, gradcam_settings
from utils.model.transplant import explain_by_transplant
from utils.model.untrained import WeightVersions, weight_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE = "data_dict['image']"  # in errors
FAR = 8  # times the largest value of a normalised image: beyond it, pixels were not normalised


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
    gradcam_choice: Choice | None = (
        None  # how `gradcam`'s map was chosen, after `calibrate_gradcam` or a run's own trial
    )
    found_maps: MapLayers | None = None  # of a network without blocks, once they were looked for
    default_layer: SpatialLayer | None = None  # of a network without blocks, once it was looked for
    usual_size: int
    said_untrained = False
    weights_at_first: WeightVersions | None = None  # None once it is known whether weights have come, or not asked

    def init_gradcam(self, config: Mapping[str, Any]) -> None:
        """Check and keep the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)
        self.usual_size = Section(config, "config").count("resolution", 224, least=1)
        self.weights_at_first = weight_versions(self)

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
        """The module that layer names are relative to; of a compiled `backbone` the one inside."""
        return unwrapped(self.backbone)

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
        if patches is None:
            return None
        family = family_of(tower)
        grid = Grid(*patches, family.prefix(tower), family.suffix(tower))
        patch = family.patch_size(tower)
        of_family = patch is not None and patches == (height // patch[0], width // patch[1])
        return grid.covering(patch, (height, width)) if of_family else grid

    def default_layers(self) -> list[str]:
        """The layers explained where a method is named and no layer: the tower's last block, or else `default_layer`.

        The latter is the last activation on a grid that the score depends on. A forward pass on noise finds it, once.
        """
        return block_names(self.explained_tower)[-1:] or [self.find_default_layer().name]

    def gradcam_layers(self) -> list[str]:
        """The layers explained where a call names none: the config's, the chosen one, or the tower's last block.

        "input" alone for method "transplant", which reads no layer.
        """
        if self.gradcam.method == TRANSPLANT:
            return [INPUT]
        return list(self.drawn_settings().layers or self.default_layers())

    def drawn_settings(self) -> GradCAMSettings:
        """The config's. Where it leaves the map to be chosen and none has been: with the first of its candidates.

        A config that says nothing of the map, not even "auto", means Grad-CAM at the last block until one is chosen.
        """
        settings = self.gradcam
        if not settings.chooses:
            return settings
        return settings.plainly() if settings.says_nothing else settings.using(self.gradcam_candidates()[0])

    def gradcam_candidates(self) -> list[Candidate]:
        """The maps worth trying, the one to fall back on first. What a config names that leaves a choice is kept to."""
        named = self.gradcam.named if self.gradcam.chooses else Named()
        return shortlist(self.explained_tower, self.map_layers(), named)

    def map_layers(self) -> MapLayers:
        """Where a network without blocks may be read: a forward pass on noise finds it, once. With blocks, nothing."""
        tower = self.explained_tower
        if self.found_maps is None:
            self.found_maps = NO_MAPS
            if not block_names(tower):
                default, forward = self.default_layers()[-1], partial(self.evaluated, {"image": self.noise()})
                with frozen_for_explaining(self):
                    self.found_maps = map_layers(tower, default, forward)
        return self.found_maps

    def noise(self) -> Tensor:
        """Two images of the usual size, to see what runs in a forward pass."""
        size = (2, 3, self.usual_size, self.usual_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(next(self.parameters()))

    def gradcam_named(self) -> list[Candidate]:
        """The config's map of each layer; none where it leaves a choice."""
        settings = self.gradcam
        if settings.chooses or settings.method == TRANSPLANT:
            return []
        (site,) = sites_of(settings.method, [settings.site])
        return [Candidate(settings.method, layer, site, settings.backward) for layer in self.gradcam_layers()]

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
            self.gradcam = self.gradcam.using(choice.used)
        self.gradcam_choice = choice

    def _tried(self, batch_size: int) -> TriedDetector:
        def margins(images: Tensor) -> Tensor:
            with frozen_for_explaining(self), torch.no_grad():
                read = [self.head_reader.read(self.evaluated({"image": part})) for part in images.split(batch_size)]
            return torch.cat([head.margin(prediction["cls"].float()) for prediction, head in read])

        def asked(images: Tensor, target: Sequence[str], **options: Any) -> Capture:
            return self.capture({"image": images}, target=list(target), **options)

        return TriedDetector(asked, margins, in_batches(batch_size))

    def find_default_layer(self) -> SpatialLayer:
        """`default_layer`. Raises InputError where the network has none."""
        if self.default_layer is None:
            forward = partial(self.evaluated, {"image": self.noise()})
            with frozen_for_explaining(self):
                self.default_layer = last_spatial_layer(self.explained_tower, forward)
        return self.default_layer

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prediction that is explained. Overridden where the detector must be told that it is not in training."""
        return self.forward(data_dict)

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
            method: one of `utils.cam.methods.METHOD_NAMES`, or "auto": the map that `calibrate_gradcam` has chosen or,
                before that, the first of `gradcam_candidates`; or "transplant": two forward passes for each patch and
                no backward pass, one map of the layer "input" whatever `layers` and `site` say.
            target: one of `utils.cam.targets.TARGETS`, the name of a class, or one entry per image (such a name, or 0
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
        data_dict = _as_mapping(data_dict)
        image = self._checked_image(data_dict)
        explanation = self._explained(data_dict, image, layers, method, target, site, backward, completeness)
        return replace(explanation, look=self._look(), untrained=self._is_untrained())

    def _explained(
        self,
        data_dict: Mapping[str, Tensor],
        image: Tensor,
        layers: str | int | Sequence[str | int] | None,
        method: str | None,
        target: Target | None,
        site: str | None,
        backward: str | None,
        completeness: bool,
    ) -> Explanation:
        if (method or self.gradcam.method) == TRANSPLANT:
            return explain_by_transplant(
                self,
                image,
                data_dict.get("reference"),
                lambda images: self.evaluated({"image": images}),
                target=self.gradcam.target if target is None else target,
                label=data_dict.get("label"),
                patches=self.patch_grid(image.shape[2], image.shape[3]),
                what=IMAGE,
                head=self.head_reader,
            )
        layers = as_names(layers) if layers is not None else None
        settings = self._settings_for(layers, method)
        return explain_tower(
            self,
            self.explained_tower,
            image,
            partial(self.evaluated, data_dict),
            layers=layers or settings.layers or self.default_layers(),
            method=settings.method if method in (None, AUTO) else method,
            site=site or settings.site,
            target=settings.target if target is None else target,
            label=data_dict.get("label"),
            grid=self.token_grid,
            pp_epsilon=settings.pp_epsilon,
            what=IMAGE,
            backward=backward or settings.backward,
            completeness=completeness,
            head=self.head_reader,
            backward_precision=settings.backward_precision,
        )

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
            warnings.warn(f"{UNTRAINED}; utils.model.load.load_gradcam_detector loads a checkpoint", stacklevel=3)
        return True

    def _checked_image(self, data_dict: Mapping[str, Tensor]) -> Tensor:
        """The batch's images. Raises InputError for unusable ones, and for pixels that were not normalised."""
        image = _image(data_dict)
        check_images(image, IMAGE)
        least, largest = (float(value) for value in image.aminmax())
        ends = [abs((end - m) / s) for m, s in zip(self.gradcam.mean, self.gradcam.std) for end in (0, 1)]
        if least >= 0 and FAR * max(ends) < largest <= 255:
            raise InputError(
                f"{IMAGE} holds values of up to {largest:.4g}, which are pixels of 0 to 255: give (x / 255 - mean) /"
                f" std, of which the largest is {max(ends):.3g}; utils.model.load.read_images does it"
            )
        return image

    def _settings_for(self, layers: Sequence[str] | None, method: str | None) -> GradCAMSettings:
        """The settings behind a call that names these, with nothing left to be chosen."""
        settings = self.gradcam
        if method == AUTO and not layers and (settings.says_nothing or not settings.chooses):
            chosen = self.gradcam_choice.used if self.gradcam_choice else self.gradcam_candidates()[0]
            return settings._replace(layers=None).using(chosen)
        if not settings.chooses or (not layers and method in (None, AUTO)):
            return self.drawn_settings()
        return settings.plainly()

    def capture(
        self,
        data_dict: Mapping[str, Tensor],
        *,
        layers: Sequence[str],
        methods: Sequence[str],
        sites: Sequence[str],
        target: Target,
        map_size: tuple[int, int] | None = None,
        backward: str | None = None,
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
            partial(self.evaluated, data_dict),
            layers=layers,
            methods=methods,
            sites=sites,
            target=target,
            label=data_dict.get("label"),
            grid=self.token_grid(height, width),
            size=map_size or (height, width),
            backward=backward or self.drawn_settings().backward,
            head=self.head_reader._replace(batch=len(image)),
            backward_precision=self.gradcam.backward_precision,
        )

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


def _checked(data_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    check_images(_image(data_dict), IMAGE)
    return data_dict


def _trial_target(target: str) -> str:
    """Whose evidence is shown on images that are called fake, for the config's target."""
    return target if target in ("margin", "real") else "fake"


def _as_mapping(data_dict: Any) -> Mapping[str, Tensor]:
    """What `explain` was given; a tensor alone counts as the image. Raises InputError for anything else."""
    if isinstance(data_dict, Tensor):
        return {"image": data_dict}
    if not hasattr(data_dict, "get"):
        raise InputError(
            f"data_dict is {type(data_dict).__name__}: give a tensor (B, 3, H, W), or {{'image': such a tensor}};"
            " utils.model.load.read_images makes one from files"
        )
    return data_dict


def _image(data_dict: Mapping[str, Tensor]) -> Tensor:
    image = data_dict.get("image")
    if image is None:
        raise InputError(f"{IMAGE} is missing: give {{'image': tensor of shape (B, 3, H, W)}}")
    return image
