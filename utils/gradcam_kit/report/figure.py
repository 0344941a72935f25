"""A figure for a paper: image × (original, forged region, maps), with text as text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from ..base.allowed import FIGURE_FONTS, FIGURE_FORMATS
from ..base.decision import UNKNOWN
from ..base.errors import InputError
from ..base.files import whole_file
from ..base.text import printable
from ..data.images import UnreadableImage
from ..data.masks import read_mask
from ..engine.layers import FUSED, SCALED, SUM
from ..engine.recipe import BOTH, PLAIN
from ..store.read_run import DatasetOnDisk, RunOnDisk, read_run, sample_maps
from ..store.read_run import original as stored_original
from ..store.sample import LayerFacts, Sample
from .page_parts.facts import some_sample
from .paper import check_known, check_output, dataset_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORMAP = "inferno"  # perceptually uniform, readable in grey and for colour-blind readers
OPACITY = 0.75  # at a map's peak; it decreases with the heat, so that the face stays visible
BAR, GAP = 0.08, 0.06  # inches: width of the colour bar, and the gap before it
LINE, BAR_TEXT = 1.35, 1.1  # height of a line, width of the colour bar's text, in font sizes
NARROW = 0.62  # mean width of a letter in font sizes; titles that do not fit are set smaller
LEGIBLE, SMALLEST = 5.5, 4.0  # points
FEW = 3  # samples, if none are named
FONTS = dict(zip(FIGURE_FONTS, ("DejaVu Sans", "STIXGeneral"), strict=True))  # both come with Matplotlib
STYLE: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "axes.linewidth": 0.4, "mathtext.fontset": "stix"}
NAMES = {  # the papers' spelling
    "gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM", "layercam": "LayerCAM",
    "xgradcam": "XGrad-CAM", "contrast": "Contrast", "contrast_z": "Contrast (z)", "legrad": "LeGrad",
    "gradeclip": "Grad-ECLIP", "attngrad": "Attention × gradient", "rollout": "Rollout", "transplant": "Transplant",
    "gradcam3d": "Grad-CAM 3D",
}  # fmt: skip
RULES = {BOTH: "both rules"}
MADE_OF = {SUM: "all blocks summed", SCALED: "blocks scaled", FUSED: "layers' mean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureStyle:
    """The style of a figure: `width` in inches, `font_size` in points, `titles` instead of the columns' own."""

    width: float
    font_size: float
    titles: Sequence[str] = ()
    font: str = "sans"
    lettered: bool = False  # (a), (b), … before the titles

    def title(self, number: int, own: str) -> str:
        text = self.titles[number] if self.titles else own
        return f"({chr(ord('a') + number)}) {text}" if self.lettered else text


class Column(NamedTuple):
    """One column of maps: a layer of one run, and a title of one or two lines."""

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
    """Return a row of the figure for one image's samples: original, forged region, and each column's map."""
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
        raise InputError(f"sample {sample.index}: its map of {name} is missing; run again")
    low, high = float(maps[name].min()), float(maps[name].max())
    heat = cv2.resize(
        maps[name], (image.shape[0],) * 2, interpolation=cv2.INTER_CUBIC
    )  # bilinear interpolation would show crosses
    return Cell(image, np.clip((heat - low) / (high - low), 0, 1))


def original(sample: Sample) -> np.ndarray:
    """Return the detector's input image, (H, W, 3) uint8 RGB. Raises InputError."""
    try:
        return stored_original(sample)
    except UnreadableImage as error:
        raise InputError(f"sample {sample.index} of {sample.dataset!r} cannot be drawn: {error}") from error


def paper_figure(samples: Sequence[Sequence[Sample]], columns: Sequence[Column], style: FigureStyle) -> Figure:
    """Draw a Matplotlib figure: a row per sample with a caption, and one colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = [cells(of_image, columns) for of_image in samples]
    own = ["image", "forged region", *(column.title for column in columns)]
    if not any(row[1].outline is not None for row in rows):
        rows, own = [[row[0], *row[2:]] for row in rows], [own[0], *own[2:]]
    if style.titles and len(style.titles) != len(own):
        raise InputError(f"--titles gives {len(style.titles)}; the figure has {len(own)} columns: {', '.join(own)}")
    side = (style.width - GAP - BAR - BAR_TEXT * style.font_size / 72) / len(own)
    titles = [_wrapped(style.title(i, text), side) for i, text in enumerate(own)]
    size = min([style.font_size, *(_fitting(title, side) for title in titles)])
    line = LINE * style.font_size / 72
    head = (max(title.count("\n") + 1 for title in titles) * LINE * size + 2) / 72
    height = head + len(rows) * (side + line)
    figure = Figure(figsize=(style.width, height))
    for r, ((sample, *_), row) in enumerate(zip(samples, rows, strict=True)):
        bottom = height - head - (r + 1) * side - r * line
        for c, cell in enumerate(row):
            box = c * side / style.width, bottom / height, 0.98 * side / style.width, 0.98 * side / height
            axes = figure.add_axes(box)
            _draw(axes, cell, size)
            if r == 0:
                axes.set_title(titles[c], fontsize=size, pad=2, linespacing=1.1)
        words = _caption(sample)
        caption_size = min(style.font_size, _fitting(words, style.width))
        figure.text(0, (bottom - 0.02) / height, words, fontsize=caption_size, va="top")
    left = (len(titles) * side + GAP) / style.width
    bar = figure.add_axes((left, (height - head - side) / height, BAR / style.width, 0.98 * side / height))
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORMAP), cax=bar, ticks=[0, 1])
    scale.ax.tick_params(labelsize=size, length=1.5, width=0.4, pad=1.5)
    scale.ax.set_yticklabels(["0", "1"])
    return figure


def _wrapped(title: str, room: float) -> str:
    """Wrap `title` so that it is legible in `room` inches: one part per line, long parts on several."""
    letters = max(8, int(72 * room / (NARROW * LEGIBLE)))
    return "\n".join(
        line for part in title.split(", ") for line in textwrap.wrap(part, letters, break_on_hyphens=False)
    )


def _fitting(text: str, room: float) -> float:
    """Return the font size in points at which the longest line of `text` fits `room` inches."""
    return max(SMALLEST, 72 * room / (NARROW * max(map(len, text.split("\n")))))


def _caption(sample: Sample) -> str:
    """Return the caption: label, P(fake), and the class for which the maps show evidence."""
    label = "" if sample.label == UNKNOWN else f"label: {('real', 'fake')[sample.label]}, "
    return f"{label}P(fake) = {sample.prob_fake:.2f}, {sample.evidence}"


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
    style: FigureStyle,
) -> None:
    """Draw `samples` of the first run into `output`, with their maps in every run. Raises InputError.

    `samples` empty: the first FEW in the page's order.
    `dataset` is needed if the run has several; `layers` and `methods` None: all in the runs.
    """
    check_output(output, FIGURE_FORMATS)
    if not (math.isfinite(style.width) and 1 <= style.width <= 40):
        raise InputError(f"--width is {style.width}; allowed: 1 to 40 inches")
    runs = [read_run(folder) for folder in run_dirs]
    columns = _columns(runs, layers, methods)
    data = []
    for run in runs:
        by_name = {one.name: one for one in run.datasets}
        data.append(by_name[dataset_name(dataset, list(by_name), f"{run.folder}", "the run has")])
    samples = samples or [sample.index for sample in sorted(data[0].samples, key=_on_page)[:FEW]]
    if not samples:
        raise InputError(f"{run_dirs[0]}: {data[0].name!r} has no heatmaps; run with --gradcam_enabled")
    from matplotlib import rc_context

    with rc_context({**STYLE, "font.family": FONTS[style.font]}):
        figure = paper_figure(_samples(data, samples, columns), columns, style)
        with whole_file(output) as file:
            figure.savefig(file, format=output.suffix[1:], dpi=300)
    print(printable(f"{output}: {len(samples)} samples, {style.width} inches wide"))


def _on_page(sample: Sample) -> tuple[bool, bool, float, int]:
    """Return a sort key, as on the page: the most confident mistakes first, then detected fakes."""
    mistake = sample.correct is False
    return not mistake, not mistake and sample.label == 0, -sample.confidence, sample.index


def _columns(runs: Sequence[RunOnDisk], layers: Sequence[str] | None, methods: Sequence[str] | None) -> list[Column]:
    """Return the maps to show, in the order of `methods`, then of `layers`, if given."""
    firsts = [some_sample(run) for run in runs]
    there = [(i, sample, layer) for i, sample in enumerate(firsts) if sample is not None for layer in sample.layers]
    known = list(dict.fromkeys(_method(sample, layer) for _, sample, layer in there))
    check_known(methods, known, "--methods: {} is in none of the runs; {}they have {}: give one run for each method")
    columns = []
    chosen: Sequence[str | None] = methods or [None]
    for method in chosen:
        for i, sample, layer in there:
            check_known(layers, runs[i].layers, "--layers: {} is not in the run; {}it has {}")
            if method in (None, _method(sample, layer)) and layer.name in (layers or [layer.name]):
                columns.append(Column(i, layer.name, _title(sample, layer)))
    return sorted(columns, key=lambda one: list(layers).index(one.layer)) if layers and not methods else columns


def _method(sample: Sample, layer: LayerFacts) -> str:
    return layer.recipe.get("method", sample.method)


def _title(sample: Sample, layer: LayerFacts) -> str:
    """Return a title such as `Grad-CAM, block 23`, with the backward rule unless it is plain, as in the paper."""
    read, rule = layer.recipe.get("layer", layer.name), layer.recipe.get("backward", sample.backward)
    method = _method(sample, layer)
    words = [
        NAMES.get(method, method),
        MADE_OF.get(read, _short(read)),
        *([RULES.get(rule, rule)] if rule != PLAIN else []),
    ]
    return ", ".join(words)


def _short(layer: str) -> str:
    """Shorten `encoder.layers.23` to `block 23` for readers of the paper."""
    head, _, number = layer.rpartition(".")
    is_block = number.lstrip("-").isdigit() and (not head or head.endswith(("layers", "layer", "blocks")))
    return f"block {number}" if is_block else layer


def _samples(data: Sequence[DatasetOnDisk], numbers: Sequence[int], columns: Sequence[Column]) -> list[list[Sample]]:
    """Find the sample of the same image in every run, for each number in the first run."""
    known = {sample.index: sample for sample in data[0].samples}
    by_path = [{sample.path: sample for sample in one.samples} for one in data]
    chosen = []
    for number in numbers:
        if number not in known:
            some = ", ".join([*map(str, list(known)[:10]), *["..."][: len(known) > 10]]) or "none"
            raise InputError(f"no heatmap for sample {number} in {data[0].name!r}; available: {some} (sample<i>/)")
        path = known[number].path
        missing = [str(one.folder) for one, samples in zip(data, by_path, strict=True) if path not in samples]
        if missing:
            raise InputError(f"no heatmap for sample {number} in {missing[0]}: explain the same frames in both")
        of_runs = [samples[path] for samples in by_path]
        for column in columns:
            sample = of_runs[column.run]
            if column.layer not in [one.name for one in sample.layers]:
                raise InputError(f"sample {sample.index} has no map of {column.layer}: {sample.lost}")
        chosen.append(of_runs)
    return chosen
