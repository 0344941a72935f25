"""Two runs → a folder with one page, its images and the table of all frames: `python -m utils.report compare A B`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...base.decision import CLASS_NAMES, THRESHOLD
from ...base.errors import InputError
from ...base.files import new_folder, replace_folder, write_table
from ...data.images import UnreadableImage, decode_image, read_file
from ...drawing.overlays import encode
from ...run.exports import REGIONS_FILE
from ...store.read_run import RunOnDisk, read_run
from ..page import joined, require_jinja2, template
from ..page_parts.facts import facts
from ..paper_figure import original
from .pairs import (
    MetricDifference,
    PairedFrames,
    PairedSample,
    agreement,
    by_forgery,
    metric_differences,
    paired_frames,
    paired_layers,
    paired_samples,
)

PAGE, FRAMES, IMAGES = "index.html", "frames.csv", "images"
SIZE = 224  # pixels of an image on the page
STYLES = ("base.css", "analysis.css", "compare.css")
READ = 5_000  # samples per dataset of each run
COLUMNS = ("path", "dataset", "forgery", "video", "label", "prob_fake_a", "prob_fake_b", "decisions_differ")


def write_comparison(run_a: Path, run_b: Path, output: Path, samples_at_most: int) -> None:
    """Write the folder, which must not be there; it appears whole. Raises InputError."""
    require_jinja2("the comparison")
    if output.exists():
        raise InputError(f"--output {output}: is there already: give the name of a folder that is not")
    a, b = read_run(run_a, READ), read_run(run_b, READ)
    frames = paired_frames(a, b)
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        new_folder(partial)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be made ({error.strerror}); give another folder") from error
    (partial / IMAGES).mkdir()
    write_table(partial / FRAMES, COLUMNS, [row for one in frames for row in _rows(one)])
    views = [_dataset(a, b, one, partial, samples_at_most) for one in frames]
    (partial / PAGE).write_text(_rendered(a, b, views), encoding="utf-8", errors="backslashreplace")
    replace_folder(partial, output)
    differing = sum(int(one.differ.sum()) for one in frames)
    print(f"{output / PAGE}: {sum(len(one.path) for one in frames)} frames in common, {differing} decided differently")


def _rows(frames: PairedFrames) -> list[tuple[object, ...]]:
    videos, labels, differ = [name for _, name in frames.video], frames.label.tolist(), frames.differ.tolist()
    scores = ([f"{score:.9g}" for score in column] for column in (frames.prob_a, frames.prob_b))
    names = [frames.name] * len(frames.path)
    return list(zip(frames.path, names, frames.forgery, videos, labels, *scores, differ, strict=True))


def _rendered(a: RunOnDisk, b: RunOnDisk, views: Sequence[dict[str, Any]]) -> str:
    from markupsafe import Markup

    both = dict(facts(a)), dict(facts(b))
    names = dict.fromkeys([*both[0], *both[1]])
    return template("compare.html.j2").render(
        style=Markup(joined("css", STYLES)),  # our own files, not escaped
        runs=(str(a.folder), str(b.folder)),
        facts=[(name, both[0].get(name, "–"), both[1].get(name, "–")) for name in names],
        datasets=views,
        frames_file=FRAMES,
    )


def _dataset(a: RunOnDisk, b: RunOnDisk, frames: PairedFrames, folder: Path, most: int) -> dict[str, Any]:
    """What the template shows of one dataset; writes its images."""
    of_a, of_b = (next(data for data in run.datasets if data.name == frames.name) for run in (a, b))
    layers = paired_layers(a.layers, b.layers)
    samples = paired_samples(of_a, of_b, layers)
    cards = [_card(pair, layers, folder) for pair in samples[:most]]
    return {
        "name": frames.name,
        "frames": len(frames.path),
        "only": (frames.only_a, frames.only_b),
        "metrics": [_metric_row(one) for one in metric_differences(frames)],
        "decisions": _decisions(frames),
        "layers": [_pair_name(pair) for pair in layers],
        "agreement": [(name, [*map(_number, means)], count) for name, means, count in agreement(samples, layers)],
        "regions": _regions(a, b, frames.name, layers),
        "samples": [card for card in cards if card],
        "explained": len(samples),
    }


def _metric_row(one: MetricDifference) -> tuple[str, str, str, str, str]:
    """Name, A, B, B − A, and its interval, with whether that excludes 0."""
    interval = f"{one.low:+.4f} to {one.high:+.4f}" + ("" if one.low <= 0 <= one.high else ", excludes 0")
    if math.isnan(one.low):
        interval = "too few videos"
    return one.name, _number(one.a, ".4f"), _number(one.b, ".4f"), _number(one.b - one.a, "+.4f"), interval


def _decisions(frames: PairedFrames) -> list[tuple[str, int, int, int]]:
    """Forgery, frames, those that only A decides rightly, those that only B does; all of them last."""
    right_a = (frames.prob_a > THRESHOLD) == (frames.label == 1)
    only_a, only_b = frames.differ & right_a, frames.differ & ~right_a
    return [
        (name, int(members.sum()), int((only_a & members).sum()), int((only_b & members).sum()))
        for name, members in by_forgery(frames.forgery)
    ]


def _regions(a: RunOnDisk, b: RunOnDisk, dataset: str, layers: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Layer, forgery, outcome, region, preference in A and in B: the rows that both runs' `regions.csv` have."""
    of_a, of_b = (_region_table(run.folder / REGIONS_FILE, dataset) for run in (a, b))
    return [
        (_pair_name(pair), forgery, outcome, region, value, of_b[forgery, outcome, pair[1], region])
        for pair in layers
        for (forgery, outcome, layer, region), value in of_a.items()
        if layer == pair[0] and (forgery, outcome, pair[1], region) in of_b
    ]


def _region_table(path: Path, dataset: str) -> dict[tuple[str, str, str, str], str]:
    """(forgery, outcome, layer, region) → preference; empty where the run has none."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (row["forgery"], row["outcome"], row["layer"], row["region"]): row["preference"]
            for row in csv.DictReader(file)
            if row["dataset"] == dataset and row["preference"]
        }


def _card(pair: PairedSample, layers: Sequence[tuple[str, str]], folder: Path) -> dict[str, Any] | None:
    """A card: what the two runs say of one frame, and its images' addresses from the page on; None without images."""
    stem = f"{pair.a.dataset}_{pair.a.index}".replace("/", "_")
    try:
        images = {"original": original(pair.a)}
        for i, (of_a, of_b) in enumerate(layers):
            images[f"{i}a"], images[f"{i}b"] = _read(pair.a.overlay(of_a)), _read(pair.b.overlay(of_b))
    except (UnreadableImage, InputError):
        return None
    address = {name: f"{IMAGES}/{stem}_{name}.webp" for name in images}
    for name, image in images.items():
        small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        (folder / address[name]).write_bytes(encode(small, "webp"))
    titles = [f"{_pair_name(one)}, correlation {_number(pair.correlation[one])}" for one in layers]
    sample, truth = pair.a, CLASS_NAMES[pair.a.label].lower()
    return {
        "title": " · ".join([sample.forgery, f"video {sample.video}", Path(sample.path).name, truth]),
        "verdicts": [f"{'✓' if one.correct else '✗'} fake {one.prob_fake:.3f}" for one in (pair.a, pair.b)],
        "differs": pair.differs,
        "original": address["original"],
        "layers": [(title, address[f"{i}a"], address[f"{i}b"]) for i, title in enumerate(titles)],
    }


def _read(path: Path) -> np.ndarray:
    return decode_image(read_file(str(path)), None)


def _pair_name(pair: tuple[str, str]) -> str:
    return pair[0] if pair[0] == pair[1] else f"{pair[0]} | {pair[1]}"


def _number(value: float, form: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(value, form)
