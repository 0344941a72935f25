"""The host's detectors by name, even if the host's `import detectors` fails because a package is missing.

In that case `detectors`, `networks` and `loss` are replaced by packages that hold only their registry and the modules
that the detector needs.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from ...base.errors import InputError, did_you_mean
from ...base.files import TRAINING_FOLDER
from ...base.text import one_line
from ...settings.config import DetectorSettings

SUFFIX = "_gradcam"
PACKAGES = ("detectors", "networks", "loss", "dataset")  # of the host; bare ones may replace them
_REGISTERS = re.compile(r"^@\w+\.register_module\(\s*(?:module_name\s*=\s*)?[\"']([^\"']+)", re.MULTILINE)


def find_detectors(model_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the registered detectors by name, including those with heatmaps (`<name>_gradcam`).

    If the host's `import detectors` fails, only `model_name` is there, and a note goes to stderr. Raises InputError.
    """
    try:
        importlib.import_module("detectors")
    except Exception as error:  # from any of the host's detectors
        if not _in_host():  # our own error
            raise
        note = f"the host's detectors cannot all be imported here ({type(error).__name__}: {one_line(error)})"
        import_only(model_name, config, f"note: {note}, so only {_without_suffix(model_name)!r} is loaded")
    # The host's __init__.py may lack our line, or register more detectors after it.
    importlib.import_module(".gradcam_detectors", "detectors").register()
    return dict(sys.modules["detectors"].DETECTOR.data)


def preimport_detector(settings: DetectorSettings) -> None:
    """Import only the detector that a command needs, which saves seconds.

    It applies if nothing has imported the host's `detectors`, and if we have a file next to the detector's.
    """
    if settings.build or not _in_host() or set(sys.modules) & set(PACKAGES):
        return
    if _with_maps(_registering_modules("detectors").get(_without_suffix(settings.model_name), "")).is_file():
        with suppress(InputError):  # find_detectors then imports all, and raises
            import_only(settings.model_name, settings.config)


def import_only(model_name: str, config: Mapping[str, Any], note: str = "") -> None:
    """Import only the host's modules that `model_name` needs; with `note`, list them on stderr.

    Raises InputError, after undoing the imports.
    """
    before, module = set(sys.modules), "detectors"
    try:
        needed = _bare_packages(model_name, config)
        if note:
            print(f"{note}: {', '.join(needed)}", file=sys.stderr)
        for module in needed:
            importlib.import_module(module)
    except Exception as error:  # from the host's code
        for imported in set(sys.modules) - before:
            if imported.partition(".")[0] in PACKAGES:
                del sys.modules[imported]
        if isinstance(error, InputError):
            raise
        name = _without_suffix(model_name)
        if isinstance(error, ModuleNotFoundError):
            raise InputError(
                f"detector {name!r}: {module} needs the package {error.name!r}, which is not installed; install it"
                f" as the host's instructions say (for example: pip install {str(error.name).split('.')[0]})"
            ) from error
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"detector {name!r}: {module} cannot be imported here ({reason})") from error


def _bare_packages(model_name: str, config: Mapping[str, Any]) -> list[str]:
    """Create bare packages, and return the modules that the detector needs, its own last. Raises InputError."""
    modules = _registering_modules("detectors")
    module = modules.get(_without_suffix(model_name))
    if module is None:
        raise unknown_detector(model_name, [*modules, *(f"{name}{SUFFIX}" for name in modules)])
    for package in ("detectors", "networks", "loss"):
        _bare_package(package, has_registry=True)
    if (TRAINING_FOLDER / "dataset" / "__init__.py").is_file():  # for training, but some detectors import from it
        _bare_package("dataset", has_registry=False)
    needed = []
    for package in ("networks", "loss"):
        registering = _registering_modules(package)
        needed += [f"{package}.{registering[key]}" for key in _names(config) if key in registering]
    ours = [f"detectors.{module}{SUFFIX}"] if _with_maps(module).is_file() else []
    return [*needed, f"detectors.{module}", *ours]


def unknown_detector(model_name: str, known: Collection[str]) -> InputError:
    """Return the error for a name that is not in `known`."""
    close, names = did_you_mean(model_name, known), ", ".join(sorted(known))
    return InputError(f"model_name {model_name!r} is not a registered detector; {close}registered: {names}")


def _in_host() -> bool:
    return (TRAINING_FOLDER / "networks").is_dir()


def _without_suffix(model_name: str) -> str:
    return model_name.removesuffix(SUFFIX)


def _bare_package(name: str, has_registry: bool) -> None:
    """Create the package `name` with only the registry that its `__init__.py` imports."""
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(TRAINING_FOLDER / name)]
    if has_registry:
        init = TRAINING_FOLDER / name / "__init__.py"
        text = init.read_text(encoding="utf-8", errors="replace")
        registry = re.search(r"^from\s+([\w.]*registry)\s+import\s+(\w+)", text, re.MULTILINE)
        if registry is None:
            raise InputError(f"{init}: imports no registry, so the detectors of this tree are not known")
        setattr(package, registry[2], getattr(importlib.import_module(registry[1]), registry[2]))


def _registering_modules(package: str) -> dict[str, str]:
    """Map each registered name to its module in the host's `package`, from the source, without running it."""
    theirs = [path for path in sorted((TRAINING_FOLDER / package).glob("*.py")) if not path.stem.endswith(SUFFIX)]
    texts = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in theirs}
    return {name: module for module, text in texts.items() for name in _REGISTERS.findall(text)}


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of networks and losses in a config: `backbone_name`, and `loss_func` (one, or several by key)."""
    loss = config.get("loss_func")
    for value in (config.get("backbone_name"), *(loss.values() if isinstance(loss, dict) else [loss])):
        if value == "cross_entropy_loss":  # a synonym
            yield "cross_entropy"
        elif isinstance(value, str):
            yield value


def _with_maps(module: str) -> Path:
    """Return the path of our file next to the host's `detectors/<module>.py`; it may not exist."""
    return TRAINING_FOLDER / "detectors" / f"{module}{SUFFIX}.py"
