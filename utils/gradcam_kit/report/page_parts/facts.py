"""The facts about a run at the top of the page, and the list of its files."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from urllib.parse import quote

from ...base.decision import THRESHOLD
from ...base.files import TRAINING_FOLDER, sha256_of
from ...base.text import size_text
from ...engine.recipe import Recipe
from ...store.read_run import RunOnDisk
from ...store.sample import RANDOM_WEIGHTS, Sample

PIXELS = "page_data"  # folder of the page's images as text
MEANING = {
    "manifest.json": "settings, versions and hashes of the run",
    "run.sqlite": "all results of the run; the other files are made from it",
    "metrics.json": "metrics of every dataset",
    "predictions.csv": "score and prediction of every frame",
    "unreadable.csv": "frames that could not be read, and why",
    "features.npz": "the head's input for every frame",
    "regions.csv": "share of the maps by region of the face",
    "regions.png": "the same as a picture",
    "mean_maps.png": "mean maps as a picture",
    "map_similarity.csv": "similarity of maps within and across classes",
    "calibration.csv": "how the map was chosen",
    "calibration.json": "the same, for the next run",
    "explanations.csv": "faithfulness: every map, metric and control",
    "explanations.json": "the same with curves and verdict",
    "explanation_curves.png": "deletion and insertion curves",
    "explanation_curves.pdf": "the same for a paper",
    "explanation_heat_table.png": "every method and layer",
    "explanation_heat_table.pdf": "the same for a paper",
    "consistency.csv": "similarity of maps from frame to frame",
    "fiftyone_samples.json": "for FiftyOne",
}
OF_THE_MOMENT = ("run.sqlite", "manifest.json")  # they contain times and the command
TOY_WEIGHTS = TRAINING_FOLDER / "assets" / "demo_detector" / "clip_demo.safetensors"
SELECTED = {"confident": "the most confident first", "random": "drawn at random", "first": "the first ones"}
MIXED = "mixed"


def facts(run: RunOnDisk) -> list[tuple[str, str]]:
    manifest, sample, weights = run.manifest, some_sample(run), run.manifest.weights
    checkpoint = RANDOM_WEIGHTS if weights is None else PurePath(weights.path).name
    if weights and weights.sha256:
        checkpoint += f" (SHA-256 {weights.sha256[:12]}…)"
    found = [("detector", str(manifest.config.get("model_name", ""))), ("weights", checkpoint)]
    found += [(fact, str(value)) for fact, value in manifest.detector.items()]
    if sample is not None:
        if len(sample.kinds) > 1:
            found += [(layer.name, str(Recipe.of(layer.recipe))) for layer in sample.layers]
        else:
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
    """Return the first sample whose JSON is complete, or None."""
    return next((sample for data in run.datasets for sample in data.samples if sample.method), None)


def target(run: RunOnDisk) -> str:
    return str(run.manifest.config.get("gradcam_target", "predicted"))


def samples_text(run: RunOnDisk) -> str:
    """Describe the explained samples: `50 of 750, wrong predictions, the most confident first`."""
    options = run.manifest.options
    explained, frames = sum(data.explained for data in run.datasets), sum(data.frames for data in run.datasets)
    which = "" if options.get("save_all") else ", wrong predictions"
    if options.get("select") == MIXED:
        which = ", detected fakes and wrong predictions"
    chosen = SELECTED.get(str(options.get("select")), "") if explained < frames else ""
    return f"{explained:,} of {frames:,}{which}{', ' if chosen else ''}{chosen}"


def is_toy(run: RunOnDisk) -> bool:
    """Tell whether the weights are the embedded detector's, which was trained on synthetic faces."""
    weights = run.manifest.weights
    return weights is not None and TOY_WEIGHTS.is_file() and weights.sha256 == sha256_of(TOY_WEIGHTS)


def run_files(run: RunOnDisk, page: str, folder: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """Title and files of the page's folder and of every dataset's; the samples' own are linked in their large view."""
    groups = [("run", _files(folder, folder, folder, page))]
    for own, name in ((folder / data.name, data.name) for data in run.datasets):
        below = sorted(path for path in own.glob("*") if path.is_dir())
        folders = [own, *(path for path in below if not path.name.startswith(("sample", ".")))]
        groups.append((name, [file for path in folders for file in _files(path, own, folder, page)]))
    return [(title, files) for title, files in groups if files]


def _files(folder: Path, below: Path, run: Path, page: str) -> list[dict[str, str]]:
    """The files in `folder`: named from `below` on, linked from the page on, with the size in words and the meaning."""
    if not folder.is_dir():
        return []
    # Without what is of the moment, the page of a run that was resumed is that of one that was not.
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name[0] != "." and file.name != page)
    return [
        {"name": file.relative_to(below).as_posix(), "href": quote(os.fsencode(file.relative_to(run).as_posix())),
         "size": "" if file.name in OF_THE_MOMENT else size_text(file.stat().st_size), "meaning": _meaning(file)}
        for file in files
    ]  # fmt: skip


def _meaning(file: Path) -> str:
    if file.parent.name == PIXELS:
        return "the page's images as text"
    return MEANING.get(file.name, "")
