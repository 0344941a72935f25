import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """The kit's function `explain` bears the name of this room: whichever of them an import finds can be called."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from .one_pass import explain

        return explain(*arguments, **named)


sys.modules[__name__].__class__ = _Room
