"""The page's header: what the run is, in one line of facts."""

from __future__ import annotations

from pathlib import PurePath

from ...base.decision import THRESHOLD
from ...base.files import TRAINING_FOLDER, sha256_of
from ...store.read_run import RunOnDisk
from ...store.sample import RANDOM_WEIGHTS, Sample

TOY_WEIGHTS = TRAINING_FOLDER / "assets" / "demo_detector" / "clip_demo.safetensors"
SELECTED = {"confident": "the most confident first", "random": "drawn at random", "first": "the first ones"}


def facts(run: RunOnDisk) -> list[tuple[str, str]]:
    """Name and value of every fact; what this run does not know is left out."""
    manifest, sample, weights = run.manifest, some_sample(run), run.manifest.weights
    checkpoint = f"{PurePath(weights.path).name} (SHA-256 {weights.sha256[:12]}…)" if weights else RANDOM_WEIGHTS
    found = [("detector", str(manifest.config.get("model_name", ""))), ("weights", checkpoint)]
    found += [(fact, str(value)) for fact, value in manifest.detector.items()]
    if sample is not None:
        found += [("method", sample.method), ("site", sample.site), ("backward", sample.backward)]
        found.append(("layers", ", ".join(run.layers)))
    return [
        *((name, value) for name, value in found if value),
        ("target", target(run)),
        ("threshold", f"fake above {THRESHOLD}"),
        ("samples", samples_text(run)),
        ("date", manifest.started[:10]),
        *(("version", version) for name, version in manifest.versions.items() if name == "gradcam_extension"),
    ]


def some_sample(run: RunOnDisk) -> Sample | None:
    """The first whose JSON is whole."""
    return next((sample for data in run.datasets for sample in data.samples if sample.method), None)


def target(run: RunOnDisk) -> str:
    """The class that the maps explain, as it was asked for."""
    return str(run.manifest.config.get("gradcam_target", "predicted"))


def samples_text(run: RunOnDisk) -> str:
    """How many were explained, and which: `50 of 750, wrong predictions, the most confident first`."""
    options = run.manifest.options
    explained, frames = sum(data.explained for data in run.datasets), sum(data.frames for data in run.datasets)
    which = "" if options.get("save_all") else ", wrong predictions"
    chosen = SELECTED.get(str(options.get("select")), "") if explained < frames else ""
    return f"{explained:,} of {frames:,}{which}{', ' if chosen else ''}{chosen}"


def is_toy(run: RunOnDisk) -> bool:
    """Whether the weights are those of the bundled detector, which was trained on drawn faces."""
    weights = run.manifest.weights
    return weights is not None and TOY_WEIGHTS.is_file() and weights.sha256 == sha256_of(TOY_WEIGHTS)
