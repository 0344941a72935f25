"""Write `index.html` for a run's folder, complete or not; it opens without network or server.

`--anonymous` copies it for others, without absolute paths, user or machine names, or file hashes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from ..base.decision import THRESHOLD
from ..base.errors import InputError
from ..base.files import TRAINING_FOLDER, partial_folder, replace_folder, write_json, write_whole
from ..base.text import one_line
from ..drawing.overlays import colour_table
from ..run.exports import PAGE, SHOWN_SAMPLES
from ..settings.options import FREE_KEYS
from ..store.manifest import METRICS
from ..store.read_run import DatasetOnDisk, RunOnDisk, frame_rows, read_run
from ..store.sample import Sample
from ..store.sample_folder import GREY_MAPS
from ..store.tables import PREDICTIONS, write_predictions
from .aggregates import Patterns, write_patterns
from .face_regions import headlines
from .page_parts.detection import BINS, RATES, detection_views
from .page_parts.facts import facts, is_toy, run_files, target
from .page_parts.faithfulness import choice_view, measured_views, measuring_command
from .page_parts.gallery import page_data, shared_path, write_pixels
from .page_parts.pattern_drawings import face_lines, feature_views, mean_maps_view, region_tables

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).resolve().parent / "template"
OUTCOME_NAMES = {"TP": "true positive", "FN": "false negative", "TN": "true negative", "FP": "false positive"}
DOCS = TRAINING_FOLDER / "docs"
KEPT_SETTINGS = ("model_name", "gradcam_target", "gradcam_colormap")  # of the configuration, which names folders
PICTURES = ("gradcam_*.png", "gradcam_*.jpg", f"{GREY_MAPS}/*.png")
COLORMAP = "inferno"  # perceptually even; the run's own is in its images
STYLES = ("base.css", "gallery.css", "large.css", "analysis.css", "print.css")
SCRIPTS = (
    "basics.js", "pictures.js", "time.js", "chosen.js", "cards.js", "video.js", "large.js", "save.js", "metrics.js",
    "help.js", "state.js",
)  # fmt: skip


def write_report(folder: Path, samples_at_most: int = SHOWN_SAMPLES) -> Path:
    """Write `index.html` with its `page_data`, and the files of `write_patterns`. Return the page's path.

    For a dataset with more than `samples_at_most` samples, every k-th is shown. Raises InputError.
    """
    require_jinja2("the report")
    run = read_run(folder, samples_at_most)
    page = folder / PAGE
    write_pixels(run, folder)
    write_whole(page, render(run, write_patterns(run, folder)).encode("utf-8", "backslashreplace"))
    return page


def jinja2_problem() -> str:
    """Return why the page cannot be written here, or ""."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        return f"{error.name} is missing"
    except ImportError as error:  # jinja2 2 with a markupsafe that is too new
        return f"jinja2 cannot be imported ({one_line(error)})"
    version = str(getattr(jinja2, "__version__", ""))
    return f"jinja2 {version} is too old" if version.split(".")[0] in ("0", "1", "2") else ""


def require_jinja2(what: str) -> None:
    """Raise InputError if `what` cannot be written here."""
    if lacking := jinja2_problem():
        raise InputError(f"{what}: {lacking}: pip install 'jinja2>=3'")


def template(name: str) -> Template:
    """Return one of our templates, which escape all values and raise for a missing name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(str(TEMPLATE)), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def joined(kind: str, names: Sequence[str]) -> str:
    """Join the templates' files of one kind, "css" or "js"."""
    return "\n".join((TEMPLATE / kind / name).read_text(encoding="utf-8") for name in names)


def render(run: RunOnDisk, patterns: Sequence[Patterns], anonymous: Path | None = None) -> str:
    """Return the page as HTML. The template escapes all outside values.

    `anonymous`: the folder of a page for others, of a run from `without_names`.
    """
    from markupsafe import Markup

    script = joined("js", SCRIPTS)
    # Without what no output depends on: the page of a run is the same wherever it was written.
    config = {key: value for key, value in run.manifest.config.items() if key not in FREE_KEYS}
    detection, counts_above = detection_views(run.datasets)
    checks = [(name, counts.checks) for name, counts in (run.manifest.heatmaps or {}).items() if counts.checks]
    return template("index.html.j2").render(
        style=Markup(joined("css", STYLES)), script=Markup(script),  # our own files, not escaped
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name=", ".join(data.name for data in run.datasets), facts=facts(run), toy=is_toy(run), notes=notes(run),
        config="" if anonymous else yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        datasets=[dataset_view(data) for data in run.datasets], detection=detection, choice=choice_view(run),
        checks=checks, measured=measured_views(run), measuring_command="" if anonymous else measuring_command(run),
        patterns=[pattern_view(one, run) for one in patterns], face=face_lines(), features=feature_views(run),
        target=target(run), files=run_files(run, PAGE, anonymous or run.folder), colours=colours(), usual=THRESHOLD,
        rates=RATES, docs="" if anonymous else docs_from(run.folder),
        data={**page_data(run, anonymous is not None), "detection": counts_above},
    )  # fmt: skip


def docs_from(folder: Path) -> str:
    """Return the relative link from a run's folder to the documentation; "" if the run lies elsewhere."""
    if not DOCS.is_dir() or not folder.resolve().is_relative_to(TRAINING_FOLDER):
        return ""
    return quote(Path(os.path.relpath(DOCS, folder.resolve())).as_posix())


def notes(run: RunOnDisk) -> list[str]:
    lines = []
    if not run.finished:
        lines.append("This run did not finish. This page covers only part of the data.")
    if run.manifest.weights is None:
        lines.append("Random weights: this detector was never trained, so its scores and maps mean nothing.")
    for data in run.datasets:
        heatmaps = run.manifest.heatmaps
        written = heatmaps[data.name].heatmaps if heatmaps else data.explained
        lines += [f"{data.name}: {note}." for note in _dataset_notes(data, written)]
    return lines


def _dataset_notes(data: DatasetOnDisk, written: int) -> Iterator[str]:
    """Yield the notes on one dataset. `written`: number of samples that the run explained."""
    if data.metrics and data.metrics.get("warning"):
        yield data.metrics["warning"]
    eer, by_host = ((data.metrics or {}).get(key) for key in ("eer", "eer_host"))
    if eer is not None and by_host is not None and f"{eer:.4f}" != f"{by_host:.4f}":
        yield (
            f"EER {eer:.4f} is the point of equal error rates; DeepfakeBench's formula gives {by_host:.4f}"
            " (eer_host in metrics.json), because it takes the curve's nearest corner"
        )
    if not data.complete:
        yield f"{len(data.label)} of {data.frames} frames were evaluated"
    if data.explained > len(data.samples):
        step = math.ceil(data.explained / max(1, len(data.samples)))
        yield f"one in {step} of the {data.explained} explained samples is shown; regions and mean maps use only these"
    lost = sum(bool(sample.lost) for sample in data.samples)
    if lost or written > data.explained:
        yield f"files of {lost + max(0, written - data.explained)} samples were deleted"
    replaced = [file for file in (sample.replaced_file() for sample in data.samples) if file]
    if replaced:
        yield (
            f"{len(replaced)} images or landmark files have changed since the run, first {replaced[0]}; regions"
            " and mean maps use the present ones"
        )
    if data.unreadable:
        yield f"{data.unreadable} frames could not be read; see {data.name}/unreadable.csv"
    yield from (gaps.line() for gaps in data.gaps if gaps.absent_frames)


def dataset_view(data: DatasetOnDisk) -> dict[str, Any]:
    """Return metrics as text, curves as points of an SVG of 100 × 100, bars as (x, width, height, title)."""
    keys = (("acc", "ACC"), ("auc", "AUC"), ("eer", "EER"), ("ap", "AP"), ("video_auc", "video AUC"))
    metrics = data.metrics or {}
    texts = [(title, "–" if metrics.get(key) is None else f"{metrics[key]:.4f}") for key, title in keys]
    texts += [(title, str(metrics.get(key, "–"))) for key, title in (("frames", "frames"), ("videos", "videos"))]
    return {
        "name": data.name, "metrics": [*texts, ("unreadable", str(data.unreadable))],
        "videos": video_histogram(data.video_frames), "gaps": data.gaps,
    }  # fmt: skip


def video_histogram(counts: Sequence[int]) -> dict[str, Any] | None:
    """Return the histogram of frames per video, from `least` to `most`; None without a video."""
    if not counts:
        return None
    least, most = min(counts), max(counts)
    if least == most:  # one bar says no more than the sentence
        return {"bars": [], "least": least, "most": most, "text": f"All {len(counts):,} videos have {least} frames."}
    step = -(-(most - least + 1) // BINS)
    numbers = Counter((count - least) // step for count in counts)
    bins, highest = 1 + max(numbers), max(numbers.values())
    bars = []
    for i, number in sorted(numbers.items()):
        low, high = least + i * step, min(most, least + (i + 1) * step - 1)
        span = f"{low}" if low == high else f"{low} to {high}"
        title = f"{number} videos of {span} frames"
        bars.append((100 * i / bins + 0.2, 100 / bins - 0.4, 100 * number / highest, title))
    usual, often = Counter(counts).most_common(1)[0]
    text = f"{len(counts):,} videos; {often:,} of them have {usual} frames, the fewest {least}, the most {most}."
    return {"bars": bars, "least": least, "most": most, "text": text}


def pattern_view(patterns: Patterns, run: RunOnDisk) -> dict[str, Any]:
    """Return headlines, similarity and images of one dataset, as strings."""
    # Maps that are constant on the mean face have no similarity.
    layer = next((name for name in run.layers if name in patterns.similarity), run.layers[0])
    return {
        "dataset": patterns.dataset, "layer": layer,
        "headlines": [
            f"{one.headline()}, {one.samples} {OUTCOME_NAMES[one.outcome]}{'s' * (one.samples != 1)}"
            for one in headlines(patterns.regions, layer)
        ],
        "mean_faces": patterns.mean_faces, "samples": patterns.samples,
        "similarity": [
            (name, *("–" if math.isnan(value) else f"{value:.2f}" for value in one[:3]), one.reals, one.fakes)
            for name, one in patterns.similarity.items()
        ],
        "regions": region_tables(patterns.regions), "mean_maps": mean_maps_view(patterns.means),
    }  # fmt: skip


def colours() -> dict[str, str]:
    """Return the page's colour map as tables of SVG's feComponentTransfer, and as stops of a CSS gradient."""
    table = colour_table(COLORMAP).numpy()
    columns = {channel: " ".join(f"{value:.3f}" for value in table[:, i] / 255) for i, channel in enumerate("RGB")}
    shown = [(row, round(100 * i / 255)) for i, row in enumerate(table.tolist()) if i % 17 == 0]
    return {**columns, "stops": ", ".join(f"rgb({r} {g} {b} / {heat}%) {heat}%" for (r, g, b), heat in shown)}


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
        write_predictions(partial / data.name / PREDICTIONS, rows)
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


def _copy_pictures(sample: Sample, folder: Path) -> None:
    for picture in (path for pattern in PICTURES for path in sample.folder.glob(pattern) if sample.comparison):
        place = folder / picture.relative_to(sample.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)
