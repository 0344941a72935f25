"""The host's detectors by name, also on a machine where `import detectors` of the host fails.

That import pulls in every detector of the host with all their packages, and one that is missing (torchvision, loralib,
a GPU) stops them all. Then only what the requested detector needs is loaded: `detectors`, `networks` and `loss` as
packages that hold their registry and nothing else, and in them the modules that register the names of the config.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ...base.errors import InputError, did_you_mean
from ...base.files import TRAINING_FOLDER
from ...base.text import one_line

SUFFIX = "_gradcam"
PACKAGES = ("detectors", "networks", "loss", "dataset")  # of the host, which bare ones may stand for


def find_detectors(model_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The registered detectors by name, those with heatmaps (`<name>_gradcam`) among them.

    All of them where the host's `import detectors` works, otherwise `model_name` alone, with a note
    on stderr. Raises InputError where it cannot be loaded either, naming the package that it lacks.
    """
    try:
        detectors = importlib.import_module("detectors")
    except Exception as error:  # whatever any of the host's detectors trips over while being imported
        if not (TRAINING_FOLDER / "networks").is_dir():  # no host: an error of our own
            raise
        detectors = _load_one(model_name, config, error)
    # The host's own __init__.py may not have our line, or more detectors behind it.
    importlib.import_module("detectors.gradcam_detectors").register()
    return dict(detectors.DETECTOR.data)


def import_alone(model_name: str, config: Mapping[str, Any]) -> None:
    """Import of the host what `model_name` needs and nothing else, seconds sooner, for `find_detectors` to find.

    For a command, whose process nobody else imports the host's `detectors` in. Nothing happens for a detector without a
    file of ours beside the host's, where one of the imports fails, and where the host has been imported already.
    """
    name = _without_suffix(model_name)
    before = set(sys.modules)
    if not (TRAINING_FOLDER / "networks").is_dir() or before & set(PACKAGES):
        return
    module = _registering_modules("detectors").get(name)
    if module is None or not _with_maps(module).is_file():
        return
    try:
        for each in _bare_packages(module, config):
            importlib.import_module(each)
    except Exception:  # whatever it is, the whole import comes next, and tells
        for imported in set(sys.modules) - before:
            if imported.partition(".")[0] in PACKAGES:
                del sys.modules[imported]


def _load_one(model_name: str, config: Mapping[str, Any], error: Exception) -> ModuleType:
    name = _without_suffix(model_name)
    module = _registering_modules("detectors").get(name)
    if module is None:
        raise _unknown(model_name) from error
    needed = _bare_packages(module, config)
    print(
        f"note: the host's detectors cannot all be imported here ({type(error).__name__}:"
        f" {one_line(error)}), so only {name!r} is loaded:"
        f" {', '.join(needed)}",
        file=sys.stderr,
    )
    for each in needed:
        _load(each, name)
    return sys.modules["detectors"]


def _bare_packages(module: str, config: Mapping[str, Any]) -> list[str]:
    """Make the host's packages without what `__init__.py` imports; the modules that `module` needs, itself last."""
    for package in ("detectors", "networks", "loss"):
        _bare_package(package)
    if (TRAINING_FOLDER / "dataset" / "__init__.py").is_file():  # for training; some detectors import a part of it
        _empty_package("dataset")
    needed = []
    for package in ("networks", "loss"):
        registering = _registering_modules(package)
        needed += [f"{package}.{registering[key]}" for key in _names(config) if key in registering]
    needed.append(f"detectors.{module}")
    if _with_maps(module).is_file():
        needed.append(f"detectors.{module}{SUFFIX}")
    return needed


def _load(module: str, model_name: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"detector {model_name!r}: {module} needs the package {error.name!r}, which is not installed here;"
            f" install it as the host's instructions say (for example: pip install {str(error.name).split('.')[0]})"
        ) from error
    except Exception as error:  # the host's own code, on a machine it was not written for
        raise InputError(
            f"detector {model_name!r}: {module} cannot be imported here ({type(error).__name__}: {one_line(error)})"
        ) from error


def _without_suffix(model_name: str) -> str:
    return model_name[: -len(SUFFIX)] if model_name.endswith(SUFFIX) else model_name


def _bare_package(name: str) -> ModuleType:
    """Package `name` without what its `__init__.py` imports: only its registry, as the line there names it."""
    folder = TRAINING_FOLDER / name
    text = (folder / "__init__.py").read_text(encoding="utf-8", errors="replace")
    registry = re.search(r"^from\s+([\w.]*registry)\s+import\s+(\w+)", text, re.MULTILINE)
    if registry is None:
        raise InputError(f"{folder / '__init__.py'}: imports no registry, so the detectors of this tree are not known")
    package = _empty_package(name)
    setattr(package, registry[2], getattr(importlib.import_module(registry[1]), registry[2]))
    return package


def _empty_package(name: str) -> ModuleType:
    """Package `name` of the host without its `__init__.py`; its modules can be imported one by one."""
    package = ModuleType(name)
    package.__path__ = [str(TRAINING_FOLDER / name)]
    sys.modules[name] = package
    return package


def _registering_modules(package: str) -> dict[str, str]:
    """Registered name → the host's module in `package` that registers it, read from the source without running it."""
    found = {}
    for path in sorted((TRAINING_FOLDER / package).glob("*.py")):
        if path.stem.endswith(SUFFIX):  # ours
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r"^@\w+\.register_module\(\s*(?:module_name\s*=\s*)?[\"']([^\"']+)", text, re.MULTILINE):
            found[name] = path.stem
    return found


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of networks and losses in a config: `backbone_name`, and `loss_func`, one or several by key."""
    loss = config.get("loss_func")
    for value in (config.get("backbone_name"), *(loss.values() if isinstance(loss, dict) else [loss])):
        if value == "cross_entropy_loss":  # means the same
            yield "cross_entropy"
        elif isinstance(value, str):
            yield value


def _unknown(model_name: str) -> InputError:
    modules = _registering_modules("detectors")
    known = [*modules, *(f"{name}{SUFFIX}" for name in modules)]
    return InputError(
        f"model_name {model_name!r} is no registered detector; {did_you_mean(model_name, known)}"
        f"registered: {', '.join(sorted(known))}"
    )


def _with_maps(module: str) -> Path:
    """Our file beside the host's `detectors/<module>.py`, where there is one."""
    return TRAINING_FOLDER / "detectors" / f"{module}{SUFFIX}.py"
