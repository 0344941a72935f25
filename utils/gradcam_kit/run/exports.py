"""Exports of a finished run: report, FiftyOne, TensorBoard, video strips."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from ..base.errors import InputError
from ..base.files import create_output_folder
from ..base.packages import require
from ..data.images import UnreadableImage
from ..parts import load_part, missing_part
from ..settings.run_options import ExportOptions
from ..store.manifest import MANIFEST, METRICS
from ..store.read_run import read_run, reader, redraw
from ..store.run_folder import read_manifest
from ..store.sample_folder import RenderedSample, write_sample
from ..store.sample_writer import saves
from ..store.tables import PREDICTIONS, write_dataset_tables, write_run_tables

PAGE = "index.html"
REGIONS_FILE, SIMILARITY_FILE = "regions.csv", "map_similarity.csv"
FIFTYONE_FILE = "fiftyone_samples.json"
EXPORT_FLAGS = "--tensorboard, --fiftyone, --video_strips"
STRIPS = "strips"  # in a dataset's folder
SHOWN_SAMPLES = 5_000  # per dataset, on the page and in the aggregates

# Files in the run's folder: its manifest lists them, and no dataset may have such a name.
TOP_FILES = (PAGE, REGIONS_FILE, SIMILARITY_FILE, FIFTYONE_FILE)


def check_exports(options: ExportOptions, save_images: str = "all") -> None:
    """Raise InputError if a part or a package is missing, before hours of evaluation."""
    if options != ExportOptions():
        load_part("exports", EXPORT_FLAGS)
    if options.tensorboard is not None:
        require("tensorboard", "--tensorboard")
    if options.fiftyone and save_images != "all":
        raise InputError(
            f"--fiftyone needs the maps as files, which --save_images {save_images} does not write: leave one out"
        )


def lacks_exports(folder: Path, options: ExportOptions) -> bool:
    """Tell whether a requested export is missing, or the run was killed while it wrote exports."""
    database = reader(folder)
    datasets = [folder / name for name in read_manifest(database).datasets]
    return (
        not database.own("exported")
        or not (missing_part("report") or (folder / PAGE).is_file())
        or (options.fiftyone and not (folder / FIFTYONE_FILE).is_file())
        or (options.tensorboard is not None and not any(options.tensorboard.glob("events.out.*")))
        or (options.video_strips and not all((dataset / STRIPS).is_dir() for dataset in datasets))
    )


def lacks_files(folder: Path) -> bool:
    """Tell whether a table of a finished run is missing: the run was killed, or somebody removed it."""
    tables = [folder / name / PREDICTIONS for name in read_manifest(reader(folder)).datasets]
    return not all(path.is_file() for path in (*tables, folder / METRICS, folder / MANIFEST))


def write_files(folder: Path, save_images: str | None = None) -> None:
    """Write the run's missing files, except report and exports, from its database.

    `save_images`: which samples get files ("all", "wrong", "none"); None: as the run did.
    """
    database = reader(folder)
    manifest = read_manifest(database)
    for name in manifest.datasets:
        create_output_folder(folder / name)
        write_dataset_tables(database, name, folder / name)
    write_run_tables(database, folder)
    wanted = save_images or str(manifest.options.get("save_images", "all"))
    how = str(manifest.options.get("image_format", "png")), bool(manifest.options.get("save_raw"))
    for data in read_run(folder).datasets:
        for sample in data.samples:
            if not sample.comparison and not sample.lost and saves(wanted, sample.correct):
                with suppress(UnreadableImage):
                    image, layers = redraw(sample)
                    write_sample(sample.folder, RenderedSample(sample, image, layers), *how)


def write_exports(folder: Path, options: ExportOptions, shown_samples: int = SHOWN_SAMPLES) -> list[str]:
    """Write the report and the exports of the run in `folder`. Return lines that tell where they are.

    Without the part "report", or without a usable jinja2, the page is skipped with a note on stderr.
    """
    others = _other_exports(folder, options)  # first, so that the page can link them
    missing = missing_part("report")
    if not missing:
        page = load_part("report.page", "the report")
        if not page.jinja2_problem():
            return [f"report: {page.write_report(folder, shown_samples)}", *others]
        load_part("report.aggregates", "the report").write_patterns(read_run(folder, shown_samples), folder)
        missing = f"{page.jinja2_problem()}: pip install 'jinja2>=3', then python -m utils.report {folder}"
    print(f"report: skipped, {missing}", file=sys.stderr)
    return others


def _other_exports(folder: Path, options: ExportOptions) -> list[str]:
    if options == ExportOptions():
        return []
    lines = []
    formats, run = load_part("exports.formats", EXPORT_FLAGS), read_run(folder)  # exports take every sample
    if options.fiftyone:
        lines.append(f"FiftyOne: {formats.write_fiftyone(run)}")
    if options.tensorboard is not None:
        formats.write_tensorboard(run, options.tensorboard)
        keep = "--samples_per_plugin images=1000"  # otherwise TensorBoard keeps a random ten per tag
        lines.append(f"TensorBoard: tensorboard --logdir {options.tensorboard} {keep}")
    if options.video_strips:
        for data in run.datasets:
            lines.append(f"{data.name}: {len(formats.write_strips(data))} video strips in {data.folder / STRIPS}")
    return lines
