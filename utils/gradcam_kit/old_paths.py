"""Import paths of version 1.1, kept for one more version: each leads to today's module and warns.

A host's own module of the same name wins.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType

HOME = "utils"  # the package that held the rooms
ROOMS = {
    "cam": "engine", "choice": "judge", "data": "data", "drawing": "drawing", "explaining": "explaining",
    "explanation_metrics": "measure", "model": "model", "results": "store", "run": "run",
}  # fmt: skip
# Modules that did not move with their room; relative to the kit.
MOVED = {
    "cam.targets": ".engine.heads",
    "data.dataset_json": "..dataset_json",
    "data.video_files": ".media.video_files",
    "explanation_metrics.localisation": ".judge.localisation",
    "model.backbone_config": ".settings.config_values",
    "model.config": ".settings.config",
    "model.gradcam_settings": ".settings.config_values",
    "run.detection_metrics": ".judge.detection_metrics",
    "training_log": ".explaining.training_log",
}


def moved_to(name: str) -> str:
    """Map `"utils.model.load"` to `"utils.gradcam_kit.model.load"`, and a name that 1.1 did not have to ""."""
    old = name.removeprefix(f"{HOME}.")
    room, _, rest = old.partition(".")
    if old in MOVED:
        new = MOVED[old]
    elif room in ROOMS:
        new = f".{ROOMS[room]}.{rest}".rstrip(".")
    else:
        new = f".base.{old}"
    new = importlib.util.resolve_name(new, __package__)
    return new if importlib.util.find_spec(new) is not None else ""


class OldPaths:
    """A finder and loader for `sys.meta_path` that makes an old name an alias of today's module."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, _: object = None) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if parent == HOME:
            known = PathFinder.find_spec(name, path) is None
        else:
            known = parent.startswith(f"{HOME}.") and sys.modules[parent].__name__ != parent  # an old name too
        new = moved_to(name) if known else ""
        if not new:
            return None
        if name.removeprefix(f"{HOME}.") not in ROOMS:
            warnings.warn(
                f"{name} is now {new}; import what you need from {HOME}.gradcam", DeprecationWarning, stacklevel=2
            )
        return ModuleSpec(name, self, origin=new)  # type: ignore[arg-type]  # it has what a loader needs

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(moved_to(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import replaced. The module has already run."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType:
        """Return the code for `python -m`."""
        return compile(f"import runpy\nrunpy.run_module({moved_to(name)!r}, run_name='__main__')", name, "exec")


def install() -> None:
    """Install the old paths in this process, once."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldPaths())
