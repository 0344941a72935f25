"""What a model is built of. It is asked before every explanation, so it takes no walk where nothing has changed."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Structure(NamedTuple):
    """The modules of a model, each once, and what each of them held by which name."""

    modules: list[nn.Module]
    children: list[dict[str, nn.Module | None]]

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        """The structure of `model` now."""
        modules = list(model.modules())
        return cls(modules, [dict(module._modules) for module in modules])

    def still_holds(self) -> bool:
        """Whether no module was added, replaced, renamed or moved since."""
        return all(module._modules == children for module, children in zip(self.modules, self.children, strict=True))

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter as it is now, once."""
        found = {
            id(parameter): parameter
            for module in self.modules
            for parameter in module._parameters.values()
            if parameter is not None
        }
        return list(found.values())
