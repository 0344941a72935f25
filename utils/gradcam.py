"""The public names inside a host: `from utils.gradcam import explain`. They are defined in gradcam_kit/face.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.gradcam_kit import __all__ as __all__
from utils.gradcam_kit import face

if TYPE_CHECKING:
    from utils.gradcam_kit.face import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(face, name)


def __dir__() -> list[str]:
    return sorted(__all__)
