"""What is said of a network of no known family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from ...base.errors import InputError
from .family import TowerFamily

PAGE = "docs/how_to/add_a_tower_family.md"


def unknown_tower(module: nn.Module, families: Sequence[TowerFamily]) -> InputError:
    """The error that names the blocks which look like a transformer's, what they lack, and what is known."""
    found = next(_repeated_blocks(module), None)
    known = "; ".join(f"{family.name} ({family.signs})" for family in families)
    if found is None:
        seen = "no repeated blocks with an attention were found, nor a convolution whose windows overlap"
    else:
        name, count, block = found
        parts = ", ".join(part for part, _ in block.named_children())
        seen = (
            f"{count} blocks {name}.0 ... {name}.{count - 1} ({type(block).__name__} with {parts}) were found, but no"
            " norm by a known name before their attention"
        )
        if isinstance(block, nn.TransformerEncoderLayer):
            seen = f"{count} blocks {name}.0 ... {name}.{count - 1} were found, whose norms come after their attention"
    return InputError(
        f"{type(module).__name__} holds no network of a known family: {seen}. Known are: {known}."
        f" Another one is a short file in utils/gradcam_kit/engine/towers/, see {PAGE}"
    )


def _repeated_blocks(module: nn.Module) -> Iterator[tuple[str, int, nn.Module]]:
    """Name, length and first entry of lists of modules of one class that hold an attention."""
    for name, inner in module.named_modules():
        if isinstance(inner, (nn.ModuleList, nn.Sequential)) and len(inner):
            same = {type(block) for block in inner}
            if len(same) == 1 and any("att" in part.lower() for part, _ in inner[0].named_modules()):
                yield name, len(inner), inner[0]
