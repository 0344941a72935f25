"""A model built by user code: `my_module:build`, found from the working directory."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..base.errors import InputError
from ..base.text import one_line


def build_model(name: str, config: Mapping[str, Any]) -> nn.Module:
    """What the function of that name returns, called with `config` where it takes an argument.

    `name`: `module:function` or `path/to/file.py:function`, from the working directory. Raises InputError for a name
    that leads nowhere, and where the code fails or gives no module.
    """
    module_name, _, function_name = name.rpartition(":")
    function = getattr(import_module_of(name), function_name, None)
    if not callable(function):
        raise InputError(f"--detector {name!r}: {module_name} has no function {function_name!r}")
    try:
        model = function(dict(config)) if _takes_config(function) else function()
    except Exception as error:  # of the user's code
        raise InputError(f"--detector {name!r} failed ({type(error).__name__}: {one_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--detector {name!r} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def import_module_of(name: str) -> ModuleType:
    """The module of a `name` as `build_model` takes it, imported once. Raises InputError."""
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise InputError(f"--detector {name!r}: give module:function, for example my_module:build")
    try:
        if not module_name.endswith(".py"):
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            _let_own_utils_in()
            return importlib.import_module(module_name)
        path = Path(module_name).absolute()
        earlier = sys.modules.get(path.stem)
        if earlier is not None and getattr(earlier, "__file__", None) == str(path):
            return earlier
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found, "a name that ends in .py"
        assert found.loader
        module = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = module  # as an import does: pickling and dataclasses look there
        found.loader.exec_module(module)
        return module
    except Exception as error:  # of the person's own code
        raise InputError(
            f"--detector {name!r}: {module_name} cannot be imported from {Path.cwd()}"
            f" ({type(error).__name__}: {one_line(error)})"
        ) from error


def _let_own_utils_in() -> None:
    """A person's `utils.py` beside their module is the `utils` that it means: ours is needed by longer names only."""
    own, ours = PathFinder.find_spec("utils", [str(Path.cwd())]), sys.modules.get("utils")
    if own is not None and ours is not None and own.origin != getattr(ours, "__file__", None):
        del sys.modules["utils"]


def _takes_config(function: Callable[..., Any]) -> bool:
    """Whether there is an argument that has to be given, or that is called config."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(this.kind in kinds and (this.default is this.empty or this.name == "config") for this in parameters)
