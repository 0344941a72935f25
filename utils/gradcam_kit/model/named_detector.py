"""The detector that a command's flags name, or the embedded one."""

from __future__ import annotations

from collections.abc import Mapping

from ..settings.config import detector_settings, find_path
from .detector import LoadedDetector
from .load import find_device, import_sooner, load_detector

EMBEDDED_DETECTOR = "config/detector/clip_gradcam_demo.yaml"


def load_named_detector(
    detector_path: str | None, device: str, precision: str, flags: Mapping[str, object], names: Mapping[str, str]
) -> LoadedDetector:
    """The detector of a YAML, or the embedded one where neither that nor weights are named. Raises InputError."""
    if detector_path is None and flags["weights_path"] is None:
        detector_path = EMBEDDED_DETECTOR
        print(
            "NOTE: no weights named, so this is the small embedded detector, trained on drawn faces. It is for trying"
            " out only and says nothing about real images. Give --detector_path and --weights_path for yours."
        )
    yaml_path = find_path(detector_path or "config/detector/clip_gradcam.yaml", "detector YAML", "--detector_path")
    settings = detector_settings(yaml_path, flags, names)
    import_sooner(settings)
    return load_detector(settings, find_device(device), precision)
