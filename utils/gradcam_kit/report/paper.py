"""A run for a paper: samples as a figure with text as text, and what was measured as LaTeX (booktabs) or CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from ..base.allowed import FIGURE_FORMATS
from ..base.errors import InputError, did_you_mean
from ..base.files import read_table, whole_file, write_table, write_whole
from ..base.text import printable
from ..data.images import UnreadableImage
from ..data.masks.annotations import read_mask
from ..measure.comparison import ALL, lower_is_better
from ..store.read_run import DatasetOnDisk, RunOnDisk, read_run, sample_maps
from ..store.read_run import original as stored_original
from ..store.sample import Sample
from .page_parts.facts import some_sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORMAP = "inferno"  # perceptually even, and readable in grey and to colour-blind readers
OPACITY = 0.75  # where a map is at its peak; it fades with the heat, so that the face stays visible
BAR, GAP = 0.08, 0.06  # inches: the colour bar and what is left before it
LINE, BAR_TEXT = 1.35, 2.4  # a line of text, and the text beside the colour bar, in units of its size
STYLE: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "axes.linewidth": 0.4}
SOURCE = "explanations.csv"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Column(NamedTuple):
    """What one column of maps shows: a layer of one of the runs, under `title`."""

    run: int
    layer: str
    title: str


class Cell(NamedTuple):
    """One image of the figure."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    heat: np.ndarray | None = None  # (H, W) in [0, 1], the map over it
    outline: np.ndarray | None = None  # (H, W), 1 where forged
    note: str = ""


def cells(samples: Sequence[Sample], columns: Sequence[Column]) -> list[Cell]:
    """A row of the figure, of one image's samples in each of the runs: original, forged region, every column's map."""
    sample = samples[0]
    image = original(sample)
    try:
        mask = read_mask(sample.path, image.shape[0])
    except UnreadableImage as error:
        raise InputError(f"sample {sample.index}: its mask cannot be read: {error}") from error
    truth = Cell(image, outline=mask) if mask is not None else Cell(image, note="no mask")
    return [Cell(image), truth, *(_map_cell(image, samples[column.run], column.layer) for column in columns)]


def _map_cell(image: np.ndarray, sample: Sample, name: str) -> Cell:
    layer = next(layer for layer in sample.layers if layer.name == name)
    if layer.empty:
        return Cell(image, note="empty map")
    maps = sample_maps(sample, [name])
    if name not in maps:
        raise InputError(f"sample {sample.index}: its map of {name} is gone; run again")
    heat = cv2.resize(maps[name], (image.shape[0],) * 2, interpolation=cv2.INTER_LINEAR)
    return Cell(image, np.clip((heat - heat.min()) / (heat.max() - heat.min()), 0, 1))


def original(sample: Sample) -> np.ndarray:
    """The image as the detector saw it, (H, W, 3) uint8 RGB. Raises InputError."""
    try:
        return stored_original(sample)
    except UnreadableImage as error:
        raise InputError(f"sample {sample.index} of {sample.dataset!r} cannot be drawn: {error}") from error


def paper_figure(
    samples: Sequence[Sequence[Sample]], columns: Sequence[Column], width: float, font_size: float
) -> Figure:
    """A Matplotlib figure `width` inches wide: a row per sample, captions of `font_size` points, one colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = [cells(of_image, columns) for of_image in samples]
    titles = ["image", "forged region", *(column.title for column in columns)]
    if not any(row[1].outline is not None for row in rows):
        rows, titles = [[row[0], *row[2:]] for row in rows], [titles[0], *titles[2:]]
    line = LINE * font_size / 72
    side = (width - GAP - BAR - BAR_TEXT * font_size / 72) / len(titles)
    height = line + len(rows) * (side + line)
    figure = Figure(figsize=(width, height))
    for r, ((sample, *_), row) in enumerate(zip(samples, rows, strict=True)):
        for c, cell in enumerate(row):
            top = height - line - (r + 1) * side - r * line
            axes = figure.add_axes((c * side / width, top / height, 0.98 * side / width, 0.98 * side / height))
            _draw(axes, cell, font_size)
            if r == 0:
                axes.set_title(titles[c], fontsize=font_size, pad=2)
            if c == 0:
                truth = "" if sample.correct is None else f"{('real', 'fake')[sample.label]}, "
                caption = f"{truth}fake {sample.prob_fake:.2f}"
                axes.text(0, -0.03, caption, fontsize=font_size, va="top", transform=axes.transAxes)
    left = (len(titles) * side + GAP) / width
    bar = figure.add_axes((left, (height - line - side) / height, BAR / width, 0.98 * side / height))
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORMAP), cax=bar, ticks=[0, 1])
    scale.ax.tick_params(labelsize=font_size, length=1.5, width=0.4, pad=1.5)
    scale.set_label("share of the map's peak", fontsize=font_size, labelpad=-3)
    return figure


def _draw(axes: Axes, cell: Cell, font_size: float) -> None:
    axes.imshow(cell.image, interpolation="antialiased")
    if cell.heat is not None:
        axes.imshow(cell.heat, cmap=COLORMAP, vmin=0, vmax=1, alpha=OPACITY * cell.heat, interpolation="antialiased")
    if cell.outline is not None:
        axes.contour(cell.outline, levels=[0.5], colors="#00d0ff", linewidths=0.8)
    if cell.note:
        axes.text(0.5, 0.04, cell.note, fontsize=font_size, color="white", ha="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def write_figure(
    run_dirs: Sequence[Path],
    output: Path,
    samples: Sequence[int],
    dataset: str | None,
    layers: Sequence[str] | None,
    methods: Sequence[str] | None,
    width: float,
    font_size: float,
) -> None:
    """Draw `samples` of the first run into `output`, with their maps in every run. Raises InputError.

    `dataset` is needed where the run has several; `layers` and `methods` None: all that the runs have. `width` in
    inches, `font_size` in points.
    """
    check_output(output, FIGURE_FORMATS)
    if not (math.isfinite(width) and 1 <= width <= 40):
        raise InputError(f"--width is {width}; allowed: 1 to 40 inches")
    runs = [read_run(folder) for folder in run_dirs]
    columns = _columns(runs, layers, methods)
    data = []
    for run in runs:
        by_name = {one.name: one for one in run.datasets}
        data.append(by_name[dataset_name(dataset, list(by_name), f"{run.folder}", "the run has")])
    figure = paper_figure(_samples(data, samples, columns), columns, width, font_size)
    from matplotlib import rc_context

    with rc_context(STYLE), whole_file(output) as file:
        figure.savefig(file, format=output.suffix[1:], dpi=300)
    print(printable(f"{output}: {len(samples)} samples, {width} inches wide"))


def _columns(runs: Sequence[RunOnDisk], layers: Sequence[str] | None, methods: Sequence[str] | None) -> list[Column]:
    """The maps to show, in the order of `methods` and then of `layers`, where these are given."""
    of_run = [sample.method if (sample := some_sample(run)) else "" for run in runs]
    message = "--methods: {} is in none of the runs; {}they have {}: give one run for each method"
    check_known(methods, list(dict.fromkeys(of_run)), message)
    columns = []
    named = [i for method in methods or () for i, name in enumerate(of_run) if name == method]
    for i in named if methods else range(len(runs)):
        check_known(layers, runs[i].layers, "--layers: {} is not in the run; {}it has {}")
        method = f"{of_run[i]}, " if len(runs) > 1 else ""
        columns += [Column(i, layer, method + _short(layer)) for layer in layers or runs[i].layers]
    return columns


def _short(layer: str) -> str:
    """`encoder.layers.23` → `block 23`: what a reader of the paper can use."""
    head, _, number = layer.rpartition(".")
    is_block = number.lstrip("-").isdigit() and (not head or head.endswith(("layers", "layer", "blocks")))
    return f"block {number}" if is_block else layer


def _samples(data: Sequence[DatasetOnDisk], numbers: Sequence[int], columns: Sequence[Column]) -> list[list[Sample]]:
    """For each number in the first run, the same image's sample in every run."""
    known = {sample.index: sample for sample in data[0].samples}
    by_path = [{sample.path: sample for sample in one.samples} for one in data]
    chosen = []
    for number in numbers:
        if number not in known:
            some = ", ".join([*map(str, list(known)[:10]), *["..."][: len(known) > 10]]) or "none"
            raise InputError(f"sample {number} was not explained in {data[0].name!r}; there are {some} (sample<i>/)")
        path = known[number].path
        missing = [str(one.folder) for one, samples in zip(data, by_path, strict=True) if path not in samples]
        if missing:
            raise InputError(f"sample {number} was not explained in {missing[0]}: explain the same frames in both")
        of_runs = [samples[path] for samples in by_path]
        for column in columns:
            sample = of_runs[column.run]
            if column.layer not in [one.name for one in sample.layers]:
                raise InputError(f"sample {sample.index} has no map of {column.layer}: {sample.lost}")
        chosen.append(of_runs)
    return chosen


def check_output(output: Path, suffixes: Sequence[str]) -> None:
    """Raises InputError where no such file can be written."""
    if output.suffix not in suffixes or not output.absolute().parent.is_dir():
        raise InputError(f"--output {str(output)!r}: give a file ({', '.join(suffixes)}) in a folder that is there")


def check_known(asked: Sequence[str] | None, known: Sequence[str], message: str) -> None:
    """Raises InputError for a name that is not `known`; `message` has places for it, for a guess and for all names."""
    for name in asked or ():
        if name not in known:
            raise InputError(message.format(repr(name), did_you_mean(name, known), ", ".join(known)))


def dataset_name(asked: str | None, names: Sequence[str], where: str, have: str) -> str:
    """`asked`, or the only one of `names`. Raises InputError."""
    if asked is not None:
        check_known([asked], names, "--dataset is {}; {}" + have + " {}")
        return asked
    if len(names) > 1:
        raise InputError(f"{where} has several datasets: give --dataset with one of {', '.join(names)}")
    return names[0] if names else ""


class Measured(NamedTuple):
    """A map's value of one metric, its interval as written (empty for none), and whether it beats every control."""

    mean: float
    low: str
    high: str
    better: bool


Rows = Mapping[str, Mapping[str, Measured]]  # map → metric → value


def write_explanation_table(run_dir: Path, output: Path, metrics: Sequence[str] | None, dataset: str | None) -> None:
    """A row per map, a column per metric (None: all measured); `dataset` is needed where there are several."""
    check_output(output, (".tex", ".csv"))
    rows = _rows(run_dir / SOURCE, dataset)
    there = list(dict.fromkeys(metric for of_map in rows.values() for metric in of_map))
    check_known(metrics, there, "--metrics: {} was not measured; {}there are {}")
    shown = list(metrics or there)
    if output.suffix == ".csv":
        table = [
            [name, *(f"{of_map[metric].mean:.6g}" if metric in of_map else "" for metric in shown)]
            for name, of_map in rows.items()
        ]
        write_table(output, ["map", *shown], table)
    else:
        write_whole(output, latex(rows, shown).encode())
    print(printable(f"{output}: {len(rows)} maps, {len(shown)} metrics"))


def _rows(path: Path, dataset: str | None) -> Rows:
    if not path.is_file():
        raise InputError(f"{path}: is not there: run test_with_gradcam.py with --evaluate_explanations first")
    table = list(read_table(path, ("dataset", "forgery", "method", "layer", "site", "metric", "mean", "better")))
    dataset = dataset_name(dataset, list(dict.fromkeys(row["dataset"] for row in table)), f"{path}", "there are")
    found: dict[str, dict[str, Measured]] = {}
    for row in table:
        if row["forgery"] == ALL and row["dataset"] == dataset and row["mean"]:
            parts = (row.get(key) for key in ("method", "layer", "site", "backward"))
            value = Measured(float(row["mean"]), row["low"], row["high"], row["better"] == "yes")
            found.setdefault(", ".join(part for part in parts if part and part != "plain"), {})[row["metric"]] = value
    return found


def latex(rows: Rows, metrics: Sequence[str]) -> str:
    """A `tabular` for the package booktabs: the best of each metric bold, a dagger where it beats every control."""
    lines = [
        "% needs \\usepackage{booktabs}; 95 % intervals over videos; dagger: better than every control map",
        "\\begin{tabular}{l" + "r" * len(metrics) + "}",
        "\\toprule",
        " & ".join(["map", *(escaped(metric) for metric in metrics)]) + r" \\",
        "\\midrule",
    ]
    best = {}
    for metric in metrics:
        means = {name: of_map[metric].mean for name, of_map in rows.items() if metric in of_map}
        best[metric] = (min if lower_is_better(metric) else max)(means, key=means.__getitem__)
    for name, of_map in rows.items():
        cells = [_cell(of_map.get(metric), name == best[metric]) for metric in metrics]
        lines.append(" & ".join([escaped(name), *cells]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(value: Measured | None, best: bool) -> str:
    if value is None:
        return "--"
    mean = f"\\textbf{{{value.mean:.3f}}}" if best else f"{value.mean:.3f}"
    interval = f" {{\\scriptsize [{float(value.low):.3f}, {float(value.high):.3f}]}}" if value.low else ""
    return mean + ("$^\\dagger$" if value.better else "") + interval


def escaped(text: str) -> str:
    """A name as LaTeX sets it."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)
