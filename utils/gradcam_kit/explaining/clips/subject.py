"""The ClipSubject: a model of clips with its layers and the reading of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...base.allowed import AUTO
from ...base.errors import InputError
from ...base.text import one_line
from ...base.threads import hooked
from ...engine.backward import BALANCED, PLAIN
from ...engine.clips.families import KNOWN, Volumes, channels_first, clip_grid, clip_tower_of, thumbnail_of
from ...engine.clips.grid import ClipShape
from ...engine.clips.maps import check_clip_method
from ...engine.frozen import frozen_for_explaining
from ...engine.heads import ANY_MODEL
from ...engine.layers import MADE_OF_OTHERS, LayerError
from ...engine.outputs.probabilities import Reading
from ...engine.recipe import Recipe, layer_names, site_of
from ...engine.spatial_layers import LEAST_CHANNELS, reached_outputs
from ...engine.towers.tower import Tower
from ..subject import AnySubject, explained_model, with_forward

BTCHW, BCTHW = "btchw", "bcthw"  # layouts of a user's model
ALIKE = 1e-4  # tolerance between the frames' mean and the clip's logits, as a share of the largest logit
PER_ROW = nn.Linear, nn.Conv1d, nn.Conv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSubject(AnySubject):
    """A model of clips (B, T, 3, H, W) to explain; `clip_subject_of` makes it."""

    def as_clip_subject(self) -> ClipSubject:
        """Return itself."""
        return self

    def on(self, clips: Tensor) -> ClipSubject:
        """Return the subject with the first of `clips` for its test passes: a layer may depend on their length."""
        return replace(self, noise=lambda: clips[:1])

    def frame_logits(self, clips: Tensor) -> Tensor:
        """Return the logits (B, T, K) of each frame of clips (B, T, 3, H, W); their mean over T is the clip's logits.

        They are the output of a linear layer or a convolution with one row per frame, as in STIL: exact, without a
        gradient. Raises InputError if there is none.
        """
        outputs: list[Tensor] = []
        count, frames = clips.shape[:2]

        def note(key: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and len(output) == count * frames:
                outputs.append(output.detach().flatten(1))

        heads = [("", one) for one in self.tower.structure.modules if isinstance(one, PER_ROW)]
        with hooked(heads, note):
            logits = self.logits(clips)
        within = ALIKE * logits.abs().max()
        found = [one.unflatten(0, (count, frames)) for one in outputs if one.shape[1] == logits.shape[1]]
        exact = next((one for one in reversed(found) if (one.mean(1) - logits).abs().max() <= within), None)
        if exact is None:
            raise InputError(f"{self.head.detector}: its decision is not the mean of its frames' logits; see `time`")
        return exact

    def drawn(self) -> Recipe:
        return self.recipe.closed() if self.recipe.is_open else self.recipe

    def all_drawn(self) -> list[Recipe]:
        return [one.closed() if one.is_open else one for one in self.recipes] or [self.drawn()]

    def recipe_for(self, layers: Any, method: str | None, site: str | None, backward: str | None) -> Recipe:
        mine = self.drawn()
        method = None if method == AUTO else method  # as chosen, where a choice was made
        names = layer_names(layers) or mine.layers
        return Recipe(method or mine.method, names, site or mine.site, backward or mine.backward)

    def resolved(self, recipe: Recipe) -> Recipe:
        recipe = recipe.closed() if recipe.is_open else recipe
        check_clip_method(recipe.method)
        if any(layer in MADE_OF_OTHERS for layer in recipe.layers):
            raise LayerError(
                f"layers {', '.join(MADE_OF_OTHERS)} are only for images: name a layer of the clip detector"
            )
        backward = PLAIN if recipe.backward == AUTO else recipe.backward
        if backward not in (PLAIN, BALANCED):
            raise InputError(f"backward {backward!r} is only for images: use {PLAIN} or {BALANCED} for clips")
        site = site_of(recipe.method, backward) if recipe.site == AUTO else recipe.site
        return Recipe(recipe.method, recipe.layers or (self.default_layer(),), site, backward)

    def default_layer(self) -> str:
        """Find the last block, or the last activation with a cell per frame and place, once per length of clips."""
        clip = self.noise()[:1]
        key = ("clip layer", tuple(clip.shape[1:]))
        return self.tower.once(key, lambda: self._default_layer(clip))

    def _default_layer(self, clip: Tensor) -> str:
        tower, shape = self.tower, ClipShape(1, *clip.shape[1:2], *clip.shape[3:])
        if tower.blocks and thumbnail_of(tower, shape.frames) is None:
            return tower.blocks[-1]
        with frozen_for_explaining(tower.model, tower.structure):
            if tower.blocks:
                found = inputs_of(tower, tower.blocks, partial(self.run, {"image": clip}))
            else:
                axes = (5,) if isinstance(tower.family, Volumes) else (4,)
                found = reached_outputs(tower.module, partial(self.run, {"image": clip}), axes).outputs
        usable = [name for name, tensor in found if _has_cells(tower, name, tensor, shape)]
        if not usable:
            raise InputError(
                f"{self.head.detector}: none of its modules returns activations with a cell for each frame and place"
                f" that the score depends on: name a layer; known are {KNOWN}",
                "layers",
            )
        return usable[-1]


def inputs_of(tower: Tower, blocks: Sequence[str], run: Callable[[], Any]) -> list[tuple[str, Tensor]]:
    """Return the input of each block in a forward pass."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, module: nn.Module, inputs: Any) -> None:
        found.append((name, inputs[0]))

    with hooked([(name, tower.named[name]) for name in blocks], note, before=True), torch.no_grad():
        run()
    return found


def _has_cells(tower: Tower, name: str, tensor: Tensor, clip: ClipShape) -> bool:
    if tensor.ndim == 5:
        tensor = channels_first(tower.named[name], tensor)
    try:
        grid = clip_grid(tower, name, tensor, clip)
    except LayerError:
        return False
    # A head may put channels last, or keep a few numbers per frame; neither are features on a grid.
    return grid.rows * grid.columns > 1 and (tensor.ndim == 3 or tensor.shape[1] >= LEAST_CHANNELS)


# ------------------------------------------------------------------------------------------------------------ the model


def clip_subject_of(
    model: nn.Module | Any,
    clips: Tensor,
    forward: Callable[[Tensor], Any] | None = None,
    layout: str | None = None,
    classes: Mapping[str, bool] | None = None,
) -> ClipSubject:
    """Make the ClipSubject of one of our detectors or any module, for clips (B, T, 3, H, W).

    Args:
        layout: layout of a plain module's clips, BTCHW or BCTHW; None: the one that it accepts.

    Raises:
        InputError: not a model, a network of no known family, another layout, or T = 3 without a layout.
    """
    model = explained_model(model, HasClipSubject)
    if isinstance(model, HasClipSubject):
        return with_forward(model.as_clip_subject(), forward, classes)
    tower = clip_tower_of(model)
    run = forward or partial(_called, model, _layout(model, clips, layout))
    return ClipSubject(
        tower=tower,
        predict=lambda batch: run(batch["image"]),
        head=ANY_MODEL._replace(detector=type(model).__name__, classes=classes),
        noise=lambda: clips[:1],
        reading=tower.once(Reading, Reading) if forward is None else Reading(),
    )


def _called(model: nn.Module, layout: str, clips: Tensor) -> Any:
    return model(clips if layout == BTCHW else clips.transpose(1, 2))


def _layout(model: nn.Module, clips: Tensor, layout: str | None) -> str:
    if layout in (BTCHW, BCTHW):
        return layout
    if layout is not None:
        raise InputError(f"clip_layout is {layout!r}; allowed: {BTCHW}, {BCTHW}")
    if clips.shape[1] == clips.shape[2]:
        raise InputError(f"clips of 3 frames fit both layouts: give clip_layout={BTCHW!r} or {BCTHW!r}")
    problems = []
    for one in (BTCHW, BCTHW):
        try:
            with frozen_for_explaining(model), torch.no_grad():
                _called(model, one, clips[:1])
            return one
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # from the user's code
            problems.append(f"as {one}: {one_line(error)}")
    raise InputError(
        f"{type(model).__name__} does not run on clips of shape {tuple(clips.shape)} ({'; '.join(problems)}); give"
        " clips of the length and size that it was made for, or forward, a function from clips to logits"
    )


@runtime_checkable
class HasClipSubject(Protocol):
    """A detector that makes its own ClipSubject."""

    def as_clip_subject(self) -> ClipSubject:
        """Return the detector as a ClipSubject."""
        ...
