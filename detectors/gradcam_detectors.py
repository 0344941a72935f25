"""Registers a `<name>_gradcam` beside every detector of the host that can show where its decision came from.

`detectors/__init__.py` imports this module last: what it imported before gets heatmaps, what it did not is left alone.
A module `<detector>_gradcam.py` holds the class for the host's `<detector>.py`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

for _path in sorted(Path(__file__).parent.glob("*_detector_gradcam.py")):
    if f"{__package__}.{_path.stem[: -len('_gradcam')]}" in sys.modules:
        importlib.import_module(f"{__package__}.{_path.stem}")
