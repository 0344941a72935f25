"""Detectors by name. Stand-in for the host's package of the same name; never copied into a host tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


class Registry:
    """Classes by name: `@DETECTOR.register_module(module_name="clip")`, then `DETECTOR["clip"]`."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def register_module(self, module_name: str) -> Callable[[Class], Class]:
        """Return a decorator that registers a class as `module_name`."""

        def register(cls: Class) -> Class:
            self.data[module_name] = cls
            return cls

        return register

    def __getitem__(self, name: str) -> Any:
        return self.data[name]


DETECTOR: Registry = Registry()

from .clip_detector import CLIPDetector  # noqa: E402  detectors register themselves in DETECTOR

# isort: split
from . import gradcam_detectors  # noqa: E402  last: adds heatmaps to the detectors above

__all__ = ["DETECTOR", "CLIPDetector", "Registry", "gradcam_detectors"]
