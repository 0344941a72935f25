"""The mixin that adds heatmaps to a detector whose `backbone` is a network of a known family."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base.allowed import DEFAULT_IMAGES
from ..base.errors import InputError
from ..engine.clips.families import clip_tower_of
from ..engine.frozen import Structure
from ..engine.heads import HeadReader, Target
from ..engine.outputs.probabilities import Reading
from ..engine.real.bank import TokenBank
from ..engine.recipe import Recipe, layer_names
from ..engine.towers import Grid, unwrapped
from ..engine.towers.tower import Tower, Weights, tower_of
from ..judge.choosing import choose_map, in_batches, trial_images
from ..judge.verdict import Choice
from ..settings.config_values import GradCAMSettings, Section, clip_size_of, gradcam_settings
from .asking.drawn import DrawnMaps
from .capture import Capture
from .clips.choosing import choose_on_batches
from .clips.one_pass import explain_images_or_clips
from .clips.subject import ClipSubject
from .explanation import UNTRAINED, DrawStyle, Explanation
from .images import Batch, are_clips, as_batch, as_batches, check_images
from .one_pass import IMAGE, BatchRequest
from .real_tokens import tried, with_bank
from .subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 8  # pixels above so many times the largest normalised value were not normalised
Layers = Any  # one or several names, numbers or modules, as for `Recipe`


class GradCAMMixin(DrawnMaps):
    """Adds `explain`, `generate_gradcam`, `show_gradcam`, `enable_gradcam` and `disable_gradcam` to a host detector.

    The detector calls `init_gradcam(config)` at the end of its constructor. Hooks live only during these calls, so
    training and inference have the same cost and results as before.

    `enable_gradcam` and `disable_gradcam` switch `generate_gradcam` and `show_gradcam` on and off; both raise while
    off. `explain` and `log_gradcam` always work.
    """

    backbone: Any  # the host's vision tower
    gradcam: GradCAMSettings
    gradcam_choice: Choice | None = None  # how the map was chosen, after `calibrate_gradcam` or a run's trial
    gradcam_bank: TokenBank | None = None  # tokens of real images: from `Bank.of`, or the trial's
    usual_size: int
    clip_size: int | None = None  # frames of a clip; None: it reads images
    said_untrained = False
    weights_at_first: Weights | None = None  # None once weights were loaded, or if not tracked

    def init_gradcam(self, config: Mapping[str, Any]) -> None:
        """Check and store the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)
        self.usual_size, self.clip_size = Section(config, "config")["resolution"], clip_size_of(config)
        self.weights_at_first = Weights(Structure(self).parameters())

    @property
    def explained_tower(self) -> nn.Module:
        """The module that layer names are relative to; for a compiled `backbone`, the module inside."""
        return unwrapped(self.backbone)

    def patch_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Return rows and columns of patches for an image of this size; None for a convolutional network.

        Override it if the detector's patches differ from its tower's family.
        """
        grid = self.tower.grid(height, width)
        return None if grid is None else (grid.rows, grid.columns)

    def token_grid(self, height: int, width: int) -> Grid | None:
        """Return the grid of tokens on an image of this size. Override it if the detector adds tokens."""
        patches = self.patch_grid(height, width)
        return None if patches is None else self.tower.grid_of(*patches, height, width)

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the explained forward pass. Override it if the detector needs a flag for evaluation."""
        found: dict[str, Tensor] = self(data_dict)  # like a user's call, so that hooks on the detector run
        return found

    @property
    def head_reader(self) -> HeadReader:
        """Return the reader of the logits, with the classes of the config."""
        clips = f"{self.clip_size} frames of {self.usual_size} pixels" if self.clip_size else ""
        return HeadReader(type(self).__name__, self.gradcam.classes, self.gradcam.labels, clips=clips)

    def noise(self) -> Tensor:
        """Return two random images or clips of the usual size, for a test pass."""
        frames = () if self.clip_size is None else (self.clip_size,)
        size = (2, *frames, 3, self.usual_size, self.usual_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(next(self.parameters()))

    @property
    def tower(self) -> Tower:
        """`explained_tower`, with its blocks and layers."""
        return tower_of(self, lambda: self.explained_tower)

    def as_subject(self) -> Subject:
        """Return the detector as a Subject."""
        settings, tower, kind = self.gradcam, self.tower, type(self)
        plain = (kind.patch_grid, kind.token_grid) == (GradCAMMixin.patch_grid, GradCAMMixin.token_grid)
        return Subject(
            **self._fields_of_subject(tower),
            grid=tower.grid if plain else self.token_grid,
            states_tokens=kind.token_grid is not GradCAMMixin.token_grid,
            is_default=settings.is_default,
            check_range=self._refuse_pixels,
            precision=settings.backward_precision,
            choice=self.gradcam_choice,
            bank=self.gradcam_bank,
        )

    def as_clip_subject(self) -> ClipSubject:
        """Return the detector as a ClipSubject. Raises InputError for an image detector."""
        if self.clip_size is None:
            raise InputError(
                f"{type(self).__name__} reads images, not clips; give one batch of"
                " frames (B, 3, H, W), for example clips.flatten(0, 1), or set video_mode and clip_size in its config"
            )
        return ClipSubject(**self._fields_of_subject(clip_tower_of(self)))

    def _fields_of_subject(self, tower: Tower) -> dict[str, Any]:
        """Return the fields of `AnySubject`."""
        settings = self.gradcam
        return {
            "tower": tower,
            "predict": self.evaluated,
            "head": self.head_reader,
            "reading": tower.once(Reading, Reading),
            "noise": self.noise,
            "look": DrawStyle(settings.mean, settings.std, settings.colormap, settings.signed),
            "recipe": settings.recipe,
            "recipes": settings.recipes,
            "target": settings.target,
            "pp_epsilon": settings.pp_epsilon,
        }

    def calibrate_gradcam(self, data_dicts: Any, images: int = DEFAULT_IMAGES, batch_size: int = 32) -> Choice:
        """Choose the map to draw by tests on images that the detector calls fake. Later calls use it.

        Args:
            data_dicts: a batch as for `explain`, or several. They may also hold `video`, a name per image or clip, and
                `paired_real` (B, 3, H, W), the original real images.
            images: maximum number of images that are called fake, and of those called real; the first ones are used.
            batch_size: images per pass.

        Returns:
            The choice with its table, also in `gradcam_choice`. If the config names method and layers, the
            trial only compares that map with others; the config stays.

        Raises:
            InputError: no batch, or an unusable one.
        """
        target = trial_target(self.gradcam.target)
        if self.clip_size is not None:
            clips, batches = self.as_clip_subject(), list(map(as_batch, as_batches(data_dicts)))
            choice = choose_on_batches(clips, batches, target, (images, batch_size), self.gradcam_named())
        else:
            in_parts = in_batches(batch_size)
            margins = tried(self.as_subject(), in_parts).margins
            given = trial_images(margins, map(_checked, as_batches(data_dicts)), images, target)
            subject = with_bank(self.as_subject(), given)
            self.gradcam_bank = subject.bank
            choice = choose_map(tried(subject, in_parts), given, subject.candidates(), self.gradcam_named())
        self.set_gradcam_choice(choice)
        return choice

    def set_gradcam_choice(self, choice: Choice) -> None:
        """Use the chosen map from now on, unless the config fixes the map. Each named layer gets its best candidate."""
        settings = self.gradcam
        if settings.needs_choice:
            recipe = settings.recipe.using(choice.used)
            recipes = tuple(recipe if one.is_open else one for one in settings.recipes)
            best = tuple(map(choice.best_at, recipe.layers))
            if not recipes and any(one != recipe.at(one.layer) for one in best):
                recipes = best
            self.gradcam = replace(settings, recipe=recipe, recipes=recipes)
        self.gradcam_choice = choice

    def explain(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        layers: Layers = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
        completeness: bool = True,
        recipes: Sequence[Recipe | str] | None = None,
    ) -> Explanation:
        """Explain one batch, from one forward and one backward pass: prediction and maps. Give options by keyword.

        Args:
            data_dict: `image` (B, 3, H, W) floating point, normalised, on the model's device; clips (B, T, 3, H, W) if
                the config has `video_mode: true`. For target "label" also `label` (B,). For method "transplant" also
                `reference`, the original real frames, shaped like `image`; default: blurred copies. A tensor alone
                counts as `image`.
            layers: one or several names of modules relative to the tower, numbers of blocks (-1: the last) or modules.
                Naming a block selects its input, at `site`. "fused" is the mean of the other layers' normalised maps,
                "sum" the sum of all blocks' raw maps.
            method: one of `engine.methods.method_names`; or "auto": the choice of `calibrate_gradcam`, else the first
                of `gradcam_candidates`; or "transplant", which takes two forward passes per patch and no
                backward pass, and makes one map, of the layer "input".
            target: see `engine.heads.target_entries`. "both" takes two passes and returns every layer twice, as
                `<layer>_fake` and `<layer>_real`.
            site: "layer_norm1" or "residual".
            backward: "plain" or "balanced", which holds attention weights, norms and channel gates constant.
            completeness: with "balanced", test by a second backward pass whether each block's token contributions and
                bias terms add up to the score.
            recipes: several maps from one pass, instead of `layers`, `method`, `site` and `backward`.

        Missing arguments come from the config. If it says "auto" and `calibrate_gradcam` has not run, a call that names
        nothing uses the first of `gradcam_candidates`. If it has no setting, or the call names layers or method, the
        defaults are Grad-CAM, the last block, its first norm and the plain backward rule.

        Raises:
            InputError: an unusable argument, or a layer that cannot be explained (LayerError). The model is unchanged.
            NonFiniteMapError: NaN or infinity in the maps or logits of some images.
        """
        batch = as_batch(data_dict)
        subject = self.as_clip_subject() if are_clips(batch["image"]) else self.as_subject()
        wanted = subject.recipes_for(recipes, layers, method, site, backward)
        asked = BatchRequest(wanted, subject.target if target is None else target, completeness)
        return replace(explain_images_or_clips(subject, batch, asked, IMAGE), untrained=self.is_untrained())

    def capture(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        *,
        layers: Layers = None,
        methods: str | Sequence[str] | None = None,
        sites: str | Sequence[str] | None = None,
        target: Target | None = None,
        map_size: tuple[int, int] | None = None,
        backward: str | None = None,
    ) -> Capture:
        """Run one forward and one backward pass for all `methods` at all `sites`. Arguments and errors as in `explain`.

        `map_size`: (H, W) of the normalised maps; None: the image's size.
        """
        batch, subject = as_batch(data_dict), self.as_subject()
        check_images(batch["image"], IMAGE)
        drawn = self.drawn_settings().recipe
        names = layer_names(layers) or tuple(self.gradcam_layers())
        rule = backward or drawn.backward
        every = [
            Recipe(method, names, site, rule)
            for method in _several(methods, drawn.method)
            for site in _several(sites, drawn.site)
        ]
        return subject.capture(
            batch, list(dict.fromkeys(every)), self.gradcam.target if target is None else target, map_size
        )

    def is_untrained(self) -> bool:
        """Tell whether the weights are still freshly initialised; warns once."""
        if self.weights_at_first is None:
            return False
        tower = self.tower if self.clip_size is None else clip_tower_of(self)  # a clip network has none for images
        if not self.weights_at_first.are_of(tower.structure.parameters()):
            self.weights_at_first = None
            return False
        if not self.said_untrained:
            self.said_untrained = True
            warnings.warn(f"{UNTRAINED}; utils.gradcam.load loads a checkpoint", stacklevel=3)
        return True

    def _refuse_pixels(self, least: float, largest: float) -> None:
        """Raise InputError if pixels in this range were not normalised."""
        ends = [abs((end - m) / s) for m, s in zip(self.gradcam.mean, self.gradcam.std, strict=True) for end in (0, 1)]
        if least >= 0 and FAR * max(ends) < largest <= 255:
            raise InputError(
                f"{IMAGE} holds values of up to {largest:.4g}, which are pixel values from 0 to 255: give (x / 255"
                f" - mean) / std, at most {max(ends):.3g}; utils.gradcam.read_images does it"
            )

    def generate_gradcam(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        save_visualizations: bool = False,
        filename_prefix: str = "gradcam",
        layers: Layers = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the heatmaps of a batch by layer: (B, H, W) float32 in [0, 1], detached, on the model's device.

        `save_visualizations` also writes, for each image i, `<prefix>_<layer>_sample<i>.png` and
        `<prefix>_comparison_sample<i>.png` to the config's `gradcam_save_dir`. Arguments and errors as in `explain`;
        raises InputError while Grad-CAM is disabled.
        """
        self._refuse_while_disabled()
        explanation = self.explain(data_dict, layers=layers, method=method, target=target, site=site, backward=backward)
        if save_visualizations:
            explanation.save(self.gradcam.save_dir, filename_prefix)
        return {name: maps.normalised for name, maps in explanation.layers.items()}

    def show_gradcam(
        self,
        data_dict: Mapping[str, Tensor] | Tensor,
        layers: Layers = None,
        method: str | None = None,
        target: Target | None = None,
        site: str | None = None,
        backward: str | None = None,
    ) -> Figure:
        """Draw the batch as a matplotlib figure: one row per image, the original and each layer's overlay.

        Arguments and errors as in `explain`; raises InputError while Grad-CAM is disabled, or without matplotlib.
        """
        self._refuse_while_disabled()
        return self.explain(data_dict, layers=layers, method=method, target=target, site=site, backward=backward).show()


def trial_target(target: Target) -> str:
    """Return the target for images that are called fake: "margin", "real" or "fake"."""
    return target if isinstance(target, str) and target in ("margin", "real") else "fake"


def _several(names: str | Sequence[str] | None, default: str) -> Sequence[str]:
    return [default] if names is None else [names] if isinstance(names, str) else names


def _checked(data_dict: Any) -> Batch:
    batch = as_batch(data_dict)
    check_images(batch["image"], IMAGE)
    return batch
