"""Settings, options and data of a run → its manifest."""

from __future__ import annotations

import hashlib
import importlib
import platform
from dataclasses import fields
from typing import Mapping, Sequence

import torch

from utils.data.frames import Frame
from utils.data.readers import reader_of
from utils.explanation_metrics.output import CSV_FILE, JSON_FILE
from utils.model.config import RunSettings
from utils.model.detector import LoadedDetector
from utils.report.exports import TOP_FILES
from utils.results.calibration_file import CALIBRATION_CSV, CALIBRATION_JSON
from utils.results.manifest import METRICS, DatasetRecord, Manifest, Weights
from utils.results.run_folder import now
from utils.run.options import RunOptions
from utils.version import VERSION

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
        batch_size=settings.batch_size,
        seed=settings.seed,
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
        options={option.name: getattr(options, option.name) for option in fields(options) if option.name != "command"},
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
