"""The network inside a model that contains the layers, with cached facts about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..frozen import Structure
from . import family_of, find_tower, is_clear
from .attention import BlockAttention, HeldAttention
from .family import Grid, TowerFamily

KEPT = "_gradcam_tower"  # in the model's own __dict__, so that both live equally long
SAMPLED = 16  # values per parameter that are compared to detect loading
T = TypeVar("T")


class Tower:
    """A network of a known family inside `model`. Layer names are relative to `module`, at `path` in the model.

    `blocks`: the names of its encoder blocks in order; none for a convolutional network.
    """

    def __init__(
        self, model: nn.Module, module: nn.Module, structure: Structure, family: TowerFamily | None = None
    ) -> None:
        """Build the tower. `family`: of `module`; None: the image family that recognises it."""
        self.model, self.module, self.structure = model, module, structure
        self.family = family or family_of(module)
        self.blocks = tuple(self.family.block_names(module))
        # Whether a pass showed that the head reads more than the last block's first token.
        self.reads_more_tokens = False
        self.layers: tuple[str, ...] = ()  # the layers it was found for, if there are several towers
        self._known: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        """Copy nothing: a copy of the model, in memory or in a file, has its own modules and finds its own tower."""
        return (type(None), ())

    @cached_property
    def path(self) -> str:
        """Return the module's name in the model, without torch.compile's prefix; "" for the model itself."""
        found = (name for name, module in self.model.named_modules() if module is self.module)
        return next(found, "").replace("._orig_mod", "")

    @cached_property
    def prefix(self) -> int | None:
        """Return the number of tokens before the patches, see `TowerFamily.prefix`."""
        return self.family.prefix(self.module)

    @cached_property
    def named(self) -> dict[str, nn.Module]:
        """Return every module of the tower by its name; "" is the tower."""
        return dict(self.module.named_modules(remove_duplicate=False))

    def once(self, key: Any, find: Callable[[], T]) -> T:
        """Return the result of `find`, called once per `key`."""
        if key not in self._known:
            self._known[key] = find()
        found: T = self._known[key]
        return found

    def known(self, key: Any) -> Any:
        """Return what `once` found for `key`; None before the first call."""
        return self._known.get(key)

    def modules_that(self, are: Callable[[nn.Module], bool]) -> list[nn.Module]:
        """Return the modules of the model for which `are` is true."""
        return self.once(are, lambda: [module for module in self.structure.modules if are(module)])

    def first_norm(self, block: str) -> nn.Module | None:
        """Return the norm on a block's input; None if the block reads its tokens without a norm."""
        return self.once(("norm", block), lambda: self.family.first_norm(self.named[block]))

    def attention(self, block: str) -> BlockAttention | None:
        """Return the attention of a block; None if its queries, keys and values cannot be read."""
        return self.once(("attention", block), lambda: self.family.attention(self.named[block]))

    def held_attention(self, block: str) -> HeldAttention | None:
        """Return a block's attention for the balanced rule; None if the rule cannot hold it."""
        return self.once(("held attention", block), lambda: self.family.held_attention(self.named[block]))

    def batch_axis(self, layer: str) -> int | None:
        """Return the batch axis of a layer's tokens, see `TowerFamily.batch_axis`."""
        return self.once(("axis", layer), lambda: self.family.batch_axis(self.module, layer))

    def place(self, name: str) -> int:
        """Return the number of the block that a module is or lies in; 0 outside blocks."""
        return next((i for i, block in enumerate(self.blocks) if f"{name}.".startswith(f"{block}.")), 0)

    def grid(self, height: int, width: int) -> Grid | None:
        """Return the token grid for an image of this size, see `TowerFamily.grid`."""
        return self.once(("grid", height, width), lambda: self.family.grid(self.module, height, width))

    def grid_of(self, rows: int, columns: int, height: int, width: int) -> Grid:
        """Return the token grid for a number of patches that the detector states."""
        grid = Grid(rows, columns, self.prefix, self.family.suffix(self.module))
        patch = self.family.patch_size(self.module)
        of_family = patch is not None and (rows, columns) == (height // patch[0], width // patch[1])
        return grid.covering(patch, (height, width)) if of_family else grid


def tower_of(model: nn.Module, find: Callable[[], nn.Module] | None = None, layers: Sequence[str] = ()) -> Tower:
    """Return the tower of `model`; it is found again only if a module was added, replaced or moved since.

    `find` finds the module; None: `find_tower` with these `layers`. Raises InputError if there is none.
    """
    kept: Tower | None = vars(model).get(KEPT)
    usable = kept is not None and kept.model is model and kept.structure.still_holds()
    if kept is None or not usable or (kept.layers and kept.layers != tuple(layers)):  # of several side by side
        module = find_tower(model, layers) if find is None else find()
        kept = Tower(model, module, Structure(model))
        kept.layers = tuple(layers) if find is None and not is_clear(model) else ()
        vars(model)[KEPT] = kept
    return kept


class Weights:
    """A snapshot of parameters that detects loading and training: tensors, version counters and some values.

    Values are needed because writing to `parameter.data` does not count, nor do tensors made under
    `torch.inference_mode`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        now = list(parameters)
        self._counted = [_count(each) for each in now]
        self._values = [_sampled(each) for each in now]

    def are_of(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Tell whether these parameters are unchanged; moving or casting does not count."""
        now = list(parameters)
        if [_count(each) for each in now] != self._counted:
            return False
        found = [_sampled(each) for each in now]
        return all(torch.equal(old.to(new.dtype), new) for old, new in zip(self._values, found, strict=True))


def _count(parameter: nn.Parameter) -> tuple[int, int]:
    return id(parameter), 0 if parameter.is_inference() else parameter._version


def _sampled(parameter: nn.Parameter) -> Tensor:
    """Return some values on the CPU; none for a parameter without data."""
    if parameter.is_meta or not parameter.numel():
        return torch.empty(0, dtype=parameter.dtype)
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLED)].clone().cpu()
