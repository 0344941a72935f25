"""Copy a run's page for others, to its own folder, without absolute paths, user or machine names, or file hashes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from ..base.errors import InputError
from ..base.files import partial_folder, replace_folder, write_json, write_table, write_whole
from ..run.exports import PAGE, SHOWN_SAMPLES
from ..store.manifest import METRICS
from ..store.read_run import DatasetOnDisk, RunOnDisk, frame_rows, read_run
from ..store.sample import Sample
from ..store.sample_folder import GREY_MAPS
from ..store.tables import COLUMNS, PREDICTIONS
from .aggregates import write_patterns
from .page import render, require_jinja2
from .page_parts.facts import is_toy
from .page_parts.gallery import shared_path, write_pixels

KEPT_SETTINGS = ("model_name", "gradcam_target", "gradcam_colormap")  # of the configuration, which names folders
PICTURES = ("gradcam_*.png", "gradcam_*.jpg", f"{GREY_MAPS}/*.png")


def write_anonymous(run_dir: Path, output: Path) -> Path:
    """Write the folder, which must not be there; it appears whole. Returns its page. Raises InputError.

    It has the page, its pictures, the metrics, predictions with paths shortened to forgery, video and file, and the
    tables of regions. What the run itself has of paths, commands and hashes stays there.
    """
    require_jinja2("the page")
    if output.exists():
        raise InputError(f"--anonymous {output}: exists already: give a new folder")
    run = without_names(read_run(run_dir, SHOWN_SAMPLES))
    partial = partial_folder(output, "--anonymous")
    for data in run.datasets:
        (partial / data.name).mkdir()
        rows = (
            {**row, "path": shared_path(row["forgery"], row["video"], row["path"])} for row in frame_rows(data.folder)
        )
        write_table(partial / data.name / PREDICTIONS, COLUMNS, (_cells(row) for row in rows))
        for sample in data.samples:
            _copy_pictures(sample, partial / data.name / f"sample{sample.index}")
    write_json(partial / METRICS, {data.name: data.metrics for data in run.datasets})
    write_pixels(run, partial)
    html = render(run, write_patterns(run, partial), partial)
    write_whole(partial / PAGE, html.encode("utf-8", "backslashreplace"))
    replace_folder(partial, output)
    return output / PAGE


def without_names(run: RunOnDisk) -> RunOnDisk:
    """Return the run with only what others may see; its folders, with the maps, stay the same."""
    manifest, weights = run.manifest, run.manifest.weights
    if weights is not None and not is_toy(run):  # whose hash tells nothing of anybody
        weights = replace(weights, path=PurePath(weights.path).name, sha256="")
    manifest = replace(
        manifest,
        command=[],
        config={key: value for key, value in manifest.config.items() if key in KEPT_SETTINGS},
        options={key: value for key, value in manifest.options.items() if key in ("save_all", "select")},
        weights=weights,
    )
    return run._replace(manifest=manifest, datasets=[_nameless(data) for data in run.datasets])


def _nameless(data: DatasetOnDisk) -> DatasetOnDisk:
    metrics = {key: value for key, value in (data.metrics or {}).items() if key != "warning"}  # it may name images
    samples = [replace(one, image_hash="", weights=PurePath(one.weights).name) for one in data.samples]
    return replace(data, metrics=metrics or None, samples=samples, gaps=[])


def _cells(row: dict[str, Any]) -> list[object]:
    return [f"{value:.9g}" if isinstance(value, float) else value for value in row.values()]


def _copy_pictures(sample: Sample, folder: Path) -> None:
    for picture in (path for pattern in PICTURES for path in sample.folder.glob(pattern) if sample.comparison):
        place = folder / picture.relative_to(sample.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)
