"""Registers `<name>_gradcam` for every detector of the host; `detectors` imports this module last.

Most detectors need no code. The others have a class in `<detector>_gradcam.py`, named after the host's file.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from detectors import DETECTOR

from .gradcam_registered import register_all


def register() -> None:
    """Register the detectors imported so far. It is called again for detectors imported later."""
    for path in sorted(Path(__file__).parent.glob("*_detector_gradcam.py")):
        if f"{__package__}.{path.stem[: -len('_gradcam')]}" in sys.modules:
            importlib.import_module(f"{__package__}.{path.stem}")
    register_all(DETECTOR)


register()
