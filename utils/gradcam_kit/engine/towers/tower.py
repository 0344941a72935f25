"""The network inside a model that layers are named in, and all that is asked of it, found once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from operator import is_
from typing import Any, TypeVar

from torch import nn

from . import family_of, find_tower, is_clear
from .attention import BlockAttention, HeldAttention
from .family import Grid, TowerFamily

KEPT = "_gradcam_tower"  # in the model's own __dict__, so that both go together
T = TypeVar("T")


class Structure:
    """The modules of a model, each once, and what each held by which name. To compare takes no walk of the model.

    `compiled`: what `torch.compile` has made of parts: holder, name, part. `usable`: the list of `parameters` that was
    seen to be fit for gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.children = [dict(module._modules) for module in self.modules]
        self.compiled = [
            (module, name, child)
            for module in self.modules
            for name, child in module._modules.items()
            if child is not None and "_orig_mod" in child._modules
        ]
        self.usable: list[nn.Parameter] | None = None
        self._held: list[nn.Parameter | None] = []
        self._parameters: list[nn.Parameter] = []

    def still_holds(self) -> bool:
        """Whether no module was added, replaced, renamed or moved since."""
        return [module._modules for module in self.modules] == self.children

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter as it is now, once; the same list as before where all are the same objects."""
        held = list(chain.from_iterable([module._parameters.values() for module in self.modules]))
        if len(held) != len(self._held) or not all(map(is_, held, self._held)):
            self._held, self._parameters = held, list({id(one): one for one in held if one is not None}.values())
        return self._parameters


class Tower:
    """A network of a known family inside `model`. Layer names are relative to `module`, at `path` in the model.

    `blocks` are the names of its encoder blocks, first to last; none for a convolutional network.
    """

    def __init__(
        self, model: nn.Module, module: nn.Module, structure: Structure, family: TowerFamily | None = None
    ) -> None:
        """`family` of `module`; None: the one of images that recognises it."""
        self.model, self.module, self.structure = model, module, structure
        self.family = family or family_of(module)
        self.blocks = tuple(self.family.block_names(module))
        self.reads_more_tokens = False  # whether the last block was seen to be read for more than its first token
        self.layers: tuple[str, ...] = ()  # for which it was found, where it may be one of several
        self._known: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        """A copy of the model, in memory or in a file, takes no tower along: it has modules of its own."""
        return (type(None), ())

    @cached_property
    def path(self) -> str:
        """The module's name in the model, without what torch.compile puts before it; "" for the model itself."""
        found = (name for name, module in self.model.named_modules() if module is self.module)
        return next(found, "").replace("._orig_mod", "")

    @cached_property
    def prefix(self) -> int | None:
        """How many tokens precede the patches, see `TowerFamily.prefix`."""
        return self.family.prefix(self.module)

    @cached_property
    def named(self) -> dict[str, nn.Module]:
        """Every module of the tower, by its name in it; "" is the tower."""
        return dict(self.module.named_modules(remove_duplicate=False))

    def once(self, key: Any, find: Callable[[], T]) -> T:
        """What `find` finds, which is asked for once for each `key`."""
        if key not in self._known:
            self._known[key] = find()
        found: T = self._known[key]
        return found

    def known(self, key: Any) -> Any:
        """What `once` has found for `key`; None where nobody has asked yet."""
        return self._known.get(key)

    def modules_that(self, are: Callable[[nn.Module], bool]) -> list[nn.Module]:
        """The modules of the model that `are` of one kind."""
        return self.once(are, lambda: [module for module in self.structure.modules if are(module)])

    def first_norm(self, block: str) -> nn.Module | None:
        """The norm through which a block reads its tokens; None where it reads them as they are."""
        return self.once(("norm", block), lambda: self.family.first_norm(self.named[block]))

    def attention(self, block: str) -> BlockAttention | None:
        """The attention of a block, None where its queries, keys and values cannot be read."""
        return self.once(("attention", block), lambda: self.family.attention(self.named[block]))

    def held_attention(self, block: str) -> HeldAttention | None:
        """All attention of a block, as the balanced rule holds it; None where it cannot."""
        return self.once(("held attention", block), lambda: self.family.held_attention(self.named[block]))

    def batch_axis(self, layer: str) -> int | None:
        """The axis of the batch in the tokens of a layer, see `TowerFamily.batch_axis`."""
        return self.once(("axis", layer), lambda: self.family.batch_axis(self.module, layer))

    def place(self, name: str) -> int:
        """The number of the block that a module is or lies in; 0 for one outside of blocks."""
        return next((i for i, block in enumerate(self.blocks) if f"{name}.".startswith(f"{block}.")), 0)

    def grid(self, height: int, width: int) -> Grid | None:
        """How tokens lie on an image of that size, see `TowerFamily.grid`."""
        return self.once(("grid", height, width), lambda: self.family.grid(self.module, height, width))

    def grid_of(self, rows: int, columns: int, height: int, width: int) -> Grid:
        """The same of patches that a detector itself knows the number of."""
        grid = Grid(rows, columns, self.prefix, self.family.suffix(self.module))
        patch = self.family.patch_size(self.module)
        of_family = patch is not None and (rows, columns) == (height // patch[0], width // patch[1])
        return grid.covering(patch, (height, width)) if of_family else grid


def tower_of(model: nn.Module, find: Callable[[], nn.Module] | None = None, layers: Sequence[str] = ()) -> Tower:
    """The tower of `model`, resolved anew only where a module was added, replaced or moved since.

    `find` finds the module; None: the one that `find_tower` finds for these `layers`. Raises InputError where there is
    none.
    """
    kept: Tower | None = vars(model).get(KEPT)
    usable = kept is not None and kept.model is model and kept.structure.still_holds()
    if kept is None or not usable or (kept.layers and kept.layers != tuple(layers)):  # of several side by side
        module = find_tower(model, layers) if find is None else find()
        kept = Tower(model, module, Structure(model))
        kept.layers = tuple(layers) if find is None and not is_clear(model) else ()
        vars(model)[KEPT] = kept
    return kept
