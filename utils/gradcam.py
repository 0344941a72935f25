"""The public names inside a host: `from utils.gradcam import explain`. `utils/gradcam_kit/__init__.py` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils import gradcam_kit

if TYPE_CHECKING:
    from utils.gradcam_kit import *  # noqa: F403
else:
    __all__ = gradcam_kit.__all__


def __getattr__(name: str) -> Any:
    return getattr(gradcam_kit, name)


def __dir__() -> list[str]:
    return sorted(gradcam_kit.PLACES)
