"""What a model is built of, walked without PyTorch's generators: it is asked before every explanation."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Structure(NamedTuple):
    """The modules of a model, and the names under which each holds the next ones, in one order.

    Equal where no module was added, replaced or moved.
    """

    modules: list[nn.Module]
    names: list[str]

    @classmethod
    def of(cls, model: nn.Module) -> Structure:
        """The structure of `model` now."""
        modules, names, seen, waiting = [], [], set(), [model]
        while waiting:
            module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            modules.append(module)
            for name, child in module._modules.items():
                if child is not None:
                    names.append(name)
                    waiting.append(child)
        return cls(modules, names)

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, once."""
        found = {
            id(parameter): parameter
            for module in self.modules
            for parameter in module._parameters.values()
            if parameter is not None
        }
        return list(found.values())
