"""The public face in a host: `from utils.gradcam import explain`. What it holds is in gradcam_kit/face.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .gradcam_kit import face
from .gradcam_kit.face import __all__ as __all__

if TYPE_CHECKING:
    from .gradcam_kit.face import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(face, name)


def __dir__() -> list[str]:
    return sorted(__all__)
