"""What makes a detector explainable: mix it into any detector whose `backbone` is a network of a known family."""

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
from ..engine.heads import HeadReader
from ..engine.outputs.probabilities import Reading
from ..engine.real.bank import TokenBank
from ..engine.recipe import Recipe, layer_names
from ..engine.targets import Target
from ..engine.towers import Grid, unwrapped
from ..engine.towers.tower import Structure, Tower, tower_of
from ..judge.choosing import choose_map, in_batches, trial_images
from ..judge.verdict import Choice
from ..settings.config_values import GradCAMSettings, Section, clip_size_of, gradcam_settings
from .asking.drawn import DrawnMaps
from .capture import Capture
from .clips.choosing import choose_on_batches
from .clips.one_pass import explain_clips
from .clips.subject import ClipSubject
from .explanation import UNTRAINED, Explanation, Look
from .images import Batch, as_batch, as_batches, check_images
from .one_pass import IMAGE, Asked, explain_batch
from .real_tokens import tried, with_bank
from .subject import Subject, Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 8  # times the largest value of a normalised image: beyond it, pixels were not normalised
Layers = Any  # names, numbers or modules, one or several: what `Recipe` takes


class GradCAMMixin(DrawnMaps):
    """Adds `explain`, `generate_gradcam`, `show_gradcam`, `enable_gradcam` and `disable_gradcam` to a host detector.

    The detector calls `init_gradcam(config)` at the end of its constructor. Nothing is hooked outside of those calls:
    training and inference cost and give exactly what they did before.

    `enable_gradcam` and `disable_gradcam` switch the calls that draw, `generate_gradcam` and `show_gradcam`: while
    disabled they refuse. `explain` always works, and with it what decides by itself when to draw (`log_gradcam`).
    """

    backbone: Any  # the host's vision tower
    gradcam: GradCAMSettings
    gradcam_choice: Choice | None = None  # how the map was chosen, after `calibrate_gradcam` or a run's own trial
    gradcam_bank: TokenBank | None = None  # tokens of real images: `Bank.of`, or those of the trial
    usual_size: int
    clip_size: int | None = None  # frames of a clip; None: it reads images
    said_untrained = False
    weights_at_first: Weights | None = None  # None once it is known whether weights have come, or not asked

    def init_gradcam(self, config: Mapping[str, Any]) -> None:
        """Check and keep the `gradcam_*` keys of `config`. Raises InputError."""
        self.gradcam = gradcam_settings(config)
        self.usual_size, self.clip_size = Section(config, "config")["resolution"], clip_size_of(config)
        self.weights_at_first = Weights(Structure(self).parameters())

    @property
    def explained_tower(self) -> nn.Module:
        """The module that layer names are relative to; of a compiled `backbone` the one inside."""
        return unwrapped(self.backbone)

    def patch_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches for an image of that size; None for a convolutional network.

        A detector whose images fall into patches otherwise than its tower's family says overrides this.
        """
        grid = self.tower.grid(height, width)
        return None if grid is None else (grid.rows, grid.columns)

    def token_grid(self, height: int, width: int) -> Grid | None:
        """How tokens lie on an image of that size. A detector that adds tokens of its own overrides this."""
        patches = self.patch_grid(height, width)
        return None if patches is None else self.tower.grid_of(*patches, height, width)

    def evaluated(self, data_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prediction that is explained. Overridden where the detector must be told that it is not in training."""
        found: dict[str, Tensor] = self(data_dict)  # as a user calls it: with the hooks on the detector itself
        return found

    @property
    def head_reader(self) -> HeadReader:
        """How the logits are read: what the config says of their classes."""
        clips = f"{self.clip_size} frames of {self.usual_size} pixels" if self.clip_size else ""
        return HeadReader(type(self).__name__, self.gradcam.classes, self.gradcam.labels, clips=clips)

    def noise(self) -> Tensor:
        """Two images or clips of the usual size, to see what runs in a forward pass."""
        frames = () if self.clip_size is None else (self.clip_size,)
        size = (2, *frames, 3, self.usual_size, self.usual_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(next(self.parameters()))

    @property
    def tower(self) -> Tower:
        """`explained_tower`, with its blocks and layers."""
        return tower_of(self, lambda: self.explained_tower)

    def as_subject(self) -> Subject:
        """This detector as all that explains it sees it."""
        settings, tower, kind = self.gradcam, self.tower, type(self)
        plain = (kind.patch_grid, kind.token_grid) == (GradCAMMixin.patch_grid, GradCAMMixin.token_grid)
        return Subject(
            tower=tower,
            predict=self.evaluated,
            reading=tower.once(Reading, Reading),
            head=self.head_reader,
            grid=tower.grid if plain else self.token_grid,
            states_tokens=kind.token_grid is not GradCAMMixin.token_grid,
            noise=self.noise,
            look=Look(settings.mean, settings.std, settings.colormap, settings.signed),
            recipe=settings.recipe,
            recipes=settings.recipes,
            says_nothing=settings.says_nothing,
            check_range=self._refuse_pixels,
            target=settings.target,
            pp_epsilon=settings.pp_epsilon,
            precision=settings.backward_precision,
            choice=self.gradcam_choice,
            bank=self.gradcam_bank,
        )

    def as_clip_subject(self) -> ClipSubject:
        """This detector as all that explains clips sees it. Raises InputError for a detector of images."""
        if self.clip_size is None:
            raise InputError(
                f"{type(self).__name__} reads images, and clips of frames are not explained as such; give one batch of"
                " frames (B, 3, H, W), for example clips.flatten(0, 1), or set video_mode and clip_size in its config"
            )
        settings, tower = self.gradcam, clip_tower_of(self)
        return ClipSubject(
            tower=tower,
            predict=self.evaluated,
            reading=tower.once(Reading, Reading),
            head=self.head_reader,
            look=Look(settings.mean, settings.std, settings.colormap, settings.signed),
            recipe=settings.recipe,
            recipes=settings.recipes,
            target=settings.target,
            pp_epsilon=settings.pp_epsilon,
        )

    def calibrate_gradcam(self, data_dicts: Any, images: int = DEFAULT_IMAGES, batch_size: int = 32) -> Choice:
        """Choose the map to draw causally, on images that the detector calls fake; the config then holds it.

        Args:
            data_dicts: a batch as for `explain`, or several; in addition to `image` they may hold `video`, a name for
                each image or clip, and `paired_real` (B, 3, H, W), the real images that they were made from.
            images: at most so many that are called fake, and as many that are called real, are used: the first ones.
            batch_size: images per pass.

        Returns:
            The choice, which `gradcam_choice` keeps, with the table of all that was tried. Where the config names
            method and layers, these are judged and nothing changes. Nothing is drawn.

        Raises:
            InputError: no batch, or an unusable one.
        """
        target = trial_target(self.gradcam.target)
        if self.clip_size is not None:
            clips, batches = self.as_clip_subject(), list(map(as_batch, as_batches(data_dicts)))
            choice = choose_on_batches(clips, batches, target, (images, batch_size), self.gradcam_named())
            self.set_gradcam_choice(choice)
            return choice
        margins = tried(self.as_subject(), in_batches(batch_size)).margins
        given = trial_images(margins, map(_checked, as_batches(data_dicts)), images, target)
        subject = with_bank(self.as_subject(), given)
        self.gradcam_bank = subject.bank
        choice = choose_map(tried(subject, in_batches(batch_size)), given, subject.candidates(), self.gradcam_named())
        self.set_gradcam_choice(choice)
        return choice

    def set_gradcam_choice(self, choice: Choice) -> None:
        """Draw what was chosen from now on, where the config leaves a choice: of each layer that it names the best."""
        settings = self.gradcam
        if settings.chooses:
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
        """Prediction and maps of one batch, from one forward pass and one backward pass. Give options by keyword.

        Args:
            data_dict: `image` (B, 3, H, W) floating point, normalised, on the model's device, or clips
                (B, T, 3, H, W) where the config has `video_mode: true`; for target "label" also
                `label` (B,); for method "transplant" also `reference`, as `image`: the real frames that the images
                were made from, blurred copies where it is not given. A tensor alone counts as `image`.
            layers: names of modules relative to the tower, numbers of blocks (-1: the last) or modules, one or several.
                A block's name means what the block reads, at `site`; "fused" means the mean of the other layers'
                normalised maps, "sum" the sum of the raw maps of all blocks.
            method: a name of `engine.methods.method_names`, or "auto": the map that `calibrate_gradcam` has chosen or,
                before that, the first of `gradcam_candidates`; or "transplant": two forward passes for each patch and
                no backward pass, one map of the layer "input" whatever `layers` and `site` say.
            target: see `engine.targets.target_entries`. "both" makes two passes and gives every layer twice, as
                `<layer>_fake` and `<layer>_real`.
            site: "layer_norm1" or "residual".
            backward: "plain" or "balanced", which holds attention weights, norms and channel gates constant.
            completeness: with "balanced", test whether each block's shares add up, by a second backward pass.
            recipes: several maps from one pass, instead of `layers`, `method`, `site` and `backward`.

        What is not given comes from the config. Where that says "auto" and `calibrate_gradcam` has not been called, a
        call that names nothing gets the first of `gradcam_candidates`. Where it says nothing, or the call names the
        layers or the method, it is the plain method behind the block's first norm, by default Grad-CAM and the last
        block.

        Raises:
            InputError: an unusable argument, or a layer that cannot be explained (LayerError); the model is untouched.
            NonFiniteMapError: NaN or infinity in the maps or logits of some images.
        """
        batch = as_batch(data_dict)
        if isinstance(batch["image"], Tensor) and batch["image"].ndim == 5:
            clips = self.as_clip_subject()
            wanted = clips.recipes_for(recipes, layers, method, site, backward)
            of_clips = explain_clips(clips, batch, Asked(wanted, clips.target if target is None else target), IMAGE)
            return replace(of_clips, untrained=self.is_untrained())
        subject = self.as_subject()
        asked = subject.recipes_for(recipes, layers, method, site, backward)
        target = subject.target if target is None else target
        found = explain_batch(subject, batch, Asked(asked, target, completeness), IMAGE)
        return replace(found, untrained=self.is_untrained())

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
        """One forward and one backward pass that serve all `methods` at all `sites`. Arguments, errors: `explain`.

        `map_size`: (H, W) of the normalised maps, the image's where it is None.
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
        """Whether the weights are still those of the constructor; warns once."""
        if self.weights_at_first is None:
            return False
        tower = self.tower if self.clip_size is None else clip_tower_of(self)  # of clips it is no network of images
        if not self.weights_at_first.are_of(tower.structure.parameters()):
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
        layers: Layers = None,
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


def trial_target(target: Target) -> str:
    """Whose evidence is shown on images that are called fake, for a call's target."""
    return target if isinstance(target, str) and target in ("margin", "real") else "fake"


def _several(names: str | Sequence[str] | None, default: str) -> Sequence[str]:
    return [default] if names is None else [names] if isinstance(names, str) else names


def _checked(data_dict: Any) -> Batch:
    batch = as_batch(data_dict)
    check_images(batch["image"], IMAGE)
    return batch
