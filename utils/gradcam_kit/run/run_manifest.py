"""Settings, options and data of a run → its manifest."""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Mapping, Sequence

import torch

from ..base.version import VERSION
from ..data.frame import Frame
from ..data.readers import reader_of
from ..measure.evaluate import CSV_FILE, JSON_FILE
from ..model.detector import LoadedDetector
from ..settings.config import RunSettings
from ..settings.run_options import RunOptions
from ..store.calibration_file import CALIBRATION_CSV, CALIBRATION_JSON
from ..store.manifest import METRICS, DatasetRecord, Manifest, Numbers, Weights
from ..store.run_folder import now
from .exports import TOP_FILES

PACKAGES = ("torch", "transformers", "numpy", "cv2", "sklearn")


def run_manifest(
    settings: RunSettings, options: RunOptions, detector: LoadedDetector, datasets: Mapping[str, Sequence[Frame]]
) -> Manifest:
    """The manifest of a run that begins now."""
    device, weights = detector.device, settings.detector.weights_name
    return Manifest(
        command=list(options.command),
        started=now(),
        config=settings.detector.config,
        settings=Numbers(settings.batch_size, settings.seed),
        detector=detector.facts(),
        weights=Weights(weights, detector.weights_sha256) if weights else None,
        datasets={
            name: DatasetRecord(
                frames=len(frames),
                json_sha256=reader_of(name, settings.data).sha256(name, settings.data),
                frames_sha256=_frames_sha256(frames),
            )
            for name, frames in datasets.items()
        },
        options=options.written(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        versions={
            "gradcam_extension": VERSION,
            "python": platform.python_version(),
            **{name: str(importlib.import_module(name).__version__) for name in PACKAGES},
        },
        top_files=[METRICS, *TOP_FILES, CSV_FILE, JSON_FILE, CALIBRATION_JSON, CALIBRATION_CSV],
        free_options=options.free(),
    )


def _frames_sha256(frames: Sequence[Frame]) -> str:
    """Of all that identifies the frames, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(tuple(frame)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
