"""Everything that is made of a finished run for people to look at: report, FiftyOne, TensorBoard, video strips."""

from __future__ import annotations

import sys
from pathlib import Path

from ..base.errors import InputError
from ..base.files import keeps_list, settle_list
from ..base.packages import require
from ..parts import load_part, missing_part
from ..settings.run_options import ExportOptions
from ..store.bundles import pack_samples
from ..store.manifest import FINISHED, read_manifest
from ..store.read_run import read_run
from ..store.sample_folder import sample_folders

PAGE = "index.html"
REGIONS_FILE, SIMILARITY_FILE = "regions.csv", "map_similarity.csv"
FIFTYONE_FILE = "fiftyone_samples.json"
STRIPS = "strips"  # in a dataset's folder
SHOWN_SAMPLES = 5_000  # per dataset, on the page and in the aggregates

# Whatever is written into a run's folder itself: its manifest lists these, so that --overwrite removes them.
TOP_FILES = (PAGE, REGIONS_FILE, SIMILARITY_FILE, FIFTYONE_FILE)

UNFINISHED = ".exports.partial"


def check_exports(options: ExportOptions) -> None:
    """Raises InputError where a part or a package is missing, before hours of evaluation."""
    if options._replace(bundle=False) != ExportOptions():
        load_part("exports", "--tensorboard, --fiftyone, --video_strips")
    if options.tensorboard is not None:
        require("tensorboard", "--tensorboard")
    if options.bundle and options.fiftyone:
        raise InputError("--bundle and --fiftyone exclude each other: FiftyOne opens the maps as files of their own")


def begin_exports(folder: Path) -> None:
    """Mark the exports of the run in `folder` as not all written; `write_exports` ends by removing the mark."""
    (folder / UNFINISHED).touch()


def lacks_exports(folder: Path, options: ExportOptions) -> bool:
    """Whether a run was killed while it wrote its exports, or one that is asked for is not there."""
    datasets = [folder / name for name in read_manifest(folder / FINISHED).datasets]
    return (
        (folder / UNFINISHED).exists()
        or not (missing_part("report") or (folder / PAGE).is_file())
        or (options.bundle and any(map(sample_folders, datasets)))
        or (options.fiftyone and not (folder / FIFTYONE_FILE).is_file())
        or (options.tensorboard is not None and not any(options.tensorboard.glob("events.out.*")))
        or (options.video_strips and not all((dataset / STRIPS).is_dir() for dataset in datasets))
    )


def write_exports(folder: Path, options: ExportOptions, shown_samples: int = SHOWN_SAMPLES) -> list[str]:
    """Make them from the files of the run in `folder`; returns lines that say where they are.

    Without the part "report", or a jinja2 that works, everything else is written, and stderr says what is left out.
    """
    begin_exports(folder)
    if options.bundle:  # first, so that the page knows where the images are
        for name in read_manifest(folder / FINISHED).datasets:
            pack_samples(folder / name, sample_folders(folder / name))
    lines = _written_exports(folder, options, shown_samples)
    if keeps_list(folder):
        settle_list(folder)
    (folder / UNFINISHED).unlink()
    return lines


def _written_exports(folder: Path, options: ExportOptions, shown_samples: int) -> list[str]:
    others = _other_exports(folder, options)  # first, so that the page links them, too
    lacking = missing_part("report")
    if not lacking:
        page = load_part("report.page", "the report")
        if not page.jinja2_problem():
            return [f"report: {page.write_report(folder, shown_samples)}", *others]
        load_part("report.aggregates", "the report").write_patterns(read_run(folder, shown_samples))
        lacking = f"{page.jinja2_problem()}: pip install 'jinja2>=3', then python -m utils.report {folder}"
    print(f"report: left out, {lacking}", file=sys.stderr)
    return others


def _other_exports(folder: Path, options: ExportOptions) -> list[str]:
    if options._replace(bundle=False) == ExportOptions():
        return []
    lines = []
    run = read_run(folder)  # other programs take every sample
    if options.fiftyone:
        lines.append(f"FiftyOne: {load_part('exports.formats', '--fiftyone').write_fiftyone(run)}")
    if options.tensorboard is not None:
        load_part("exports.formats", "--tensorboard").write_tensorboard(run, options.tensorboard)
        keep = "--samples_per_plugin images=1000"  # else ten of a tag are kept, by lot
        lines.append(f"TensorBoard: tensorboard --logdir {options.tensorboard} {keep}")
    if options.video_strips:
        strips = load_part("exports.formats", "--video_strips")
        for data in run.datasets:
            lines.append(f"{data.name}: {len(strips.write_strips(data))} video strips in {data.folder / 'strips'}")
    return lines
