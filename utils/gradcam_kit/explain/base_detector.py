"""What an explainable detector knows of itself: its settings, its tower, where its patches lie, how logits are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base.allowed import TRANSPLANT
from ..base.errors import InputError
from ..engine.frozen import frozen_for_explaining
from ..engine.heads import HeadReader
from ..engine.layers import block_names
from ..engine.recipe import Recipe
from ..engine.spatial_layers import SpatialLayer, last_spatial_layer
from ..engine.targets import Target
from ..engine.towers import Grid, family_of, unwrapped
from ..engine.transplant import INPUT
from ..judge.candidates import NO_MAPS, MapLayers, map_layers, shortlist
from ..judge.verdict import Choice
from ..settings.config_values import Section
from ..settings.gradcam_settings import GradCAMSettings, gradcam_settings
from .capture import Capture, capture
from .one_pass import check_images
from .untrained import WeightVersions, weight_versions

IMAGE = "data_dict['image']"  # in errors


class ExplainableDetector(nn.Module):
    """A host's detector whose tower can be read; `GradCAMMixin` makes maps of what is read here."""

    backbone: Any  # the host's vision tower
    gradcam: GradCAMSettings
    gradcam_choice: Choice | None = None  # how the map was chosen, after `calibrate_gradcam` or a run's own trial
    found_maps: MapLayers | None = None  # of a network without blocks, once they were looked for
    default_layer: SpatialLayer | None = None  # of a network without blocks, once it was looked for
    usual_size: int
    said_untrained = False
    weights_at_first: WeightVersions | None = None  # None once it is known whether weights have come, or not asked

    def init_gradcam(self, config: Mapping[str, Any]) -> None:
        """Check and keep the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)
        self.usual_size = Section(config, "config")["resolution"]
        self.weights_at_first = weight_versions(self)

    @property
    def gradcam_enabled(self) -> bool:
        """Whether `generate_gradcam` and `show_gradcam` work."""
        return self.gradcam.enabled

    def enable_gradcam(self) -> None:
        """Allow heatmaps from now on."""
        self.gradcam = replace(self.gradcam, enabled=True)

    def disable_gradcam(self) -> None:
        """Refuse heatmaps from now on."""
        self.gradcam = replace(self.gradcam, enabled=False)

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

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prediction that is explained. Overridden where the detector must be told that it is not in training."""
        return self.forward(data_dict)

    def noise(self) -> Tensor:
        """Two images of the usual size, to see what runs in a forward pass."""
        size = (2, 3, self.usual_size, self.usual_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(next(self.parameters()))

    def default_layers(self) -> list[str]:
        """The layers explained where a method is named and no layer: the tower's last block, or else `default_layer`.

        The latter is the last activation on a grid that the score depends on. A forward pass on noise finds it, once.
        """
        return block_names(self.explained_tower)[-1:] or [self.find_default_layer().name]

    def find_default_layer(self) -> SpatialLayer:
        """`default_layer`. Raises InputError where the network has none."""
        if self.default_layer is None:
            forward = partial(self.evaluated, {"image": self.noise()})
            with frozen_for_explaining(self):
                self.default_layer = last_spatial_layer(self.explained_tower, forward)
        return self.default_layer

    def gradcam_layers(self) -> list[str]:
        """The layers explained where a call names none: the config's, the chosen one, or the tower's last block.

        "input" alone for method "transplant", which reads no layer.
        """
        if self.gradcam.recipe.method == TRANSPLANT:
            return [INPUT]
        return list(self.drawn_settings().recipe.layers or self.default_layers())

    def drawn_settings(self) -> GradCAMSettings:
        """The config's. Where it leaves the map to be chosen and none has been: with the first of its candidates.

        A config that says nothing of the map, not even "auto", means Grad-CAM at the last block until one is chosen.
        """
        settings = self.gradcam
        if not settings.chooses:
            return settings
        recipe = settings.recipe
        drawn = recipe.closed() if settings.says_nothing else recipe.using(self.gradcam_candidates()[0])
        return replace(settings, recipe=drawn)

    def gradcam_candidates(self) -> list[Recipe]:
        """The maps worth trying, the one to fall back on first. What a config names that leaves a choice is kept to."""
        named = self.gradcam.recipe if self.gradcam.chooses else Recipe.open()
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
        image = image_of(data_dict)
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
            backward=backward or self.drawn_settings().recipe.backward,
            head=self.head_reader._replace(batch=len(image)),
            backward_precision=self.gradcam.backward_precision,
        )


def image_of(data_dict: Mapping[str, Tensor]) -> Tensor:
    image = data_dict.get("image")
    if image is None:
        raise InputError(f"{IMAGE} is missing: give {{'image': tensor of shape (B, 3, H, W)}}")
    return image
