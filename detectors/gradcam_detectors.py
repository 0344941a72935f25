"""The plug-in door: registers a `<name>_gradcam` for every detector of the host.

`detectors/__init__.py` imports this module last: only what it has imported before gets heatmaps. Most detectors need no
code for that. Where one does, `<detector>_gradcam.py` holds the class for the host's `<detector>.py`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from detectors import DETECTOR

from .gradcam_registered import register_all


def register() -> None:
    """Also called again later, for detectors that were imported after this module."""
    for path in sorted(Path(__file__).parent.glob("*_detector_gradcam.py")):
        if f"{__package__}.{path.stem[: -len('_gradcam')]}" in sys.modules:
            importlib.import_module(f"{__package__}.{path.stem}")
    register_all(DETECTOR)


register()
