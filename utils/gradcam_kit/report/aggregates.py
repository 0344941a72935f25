"""Patterns across a run's maps: tables of regions and similarity, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ..base.files import write_table, write_whole
from ..base.text import one_line, shortened
from ..drawing.overlays import colour, encode, text_line
from ..run.exports import REGIONS_FILE, SIMILARITY_FILE
from ..store.read_run import DatasetOnDisk, RunOnDisk, sample_maps
from .face_regions import (
    REGIONS,
    GroupRegions,
    RegionShares,
    group_regions,
    region_image,
    region_shares,
    sample_landmarks,
    table_number,
    write_group_table,
    write_sample_table,
)  # fmt: skip
from .mean_maps import MEAN_FACE, MeanMaps, Similarity

STRONGEST = 8.0  # preference at which the colours of the region tables saturate
MOST_ROWS = 60  # per image and on the page; the CSV tables hold all rows
CELL, LINE, NAMES, GAP = 144, 22, 190, 8  # pixels
COLUMN, ROW = 92, 26


class Patterns(NamedTuple):
    """The patterns of one dataset."""

    dataset: str
    regions: list[GroupRegions]
    similarity: dict[str, Similarity]
    samples: int  # samples with at least one map that is not empty
    mean_faces: int  # those without landmarks
    means: MeanMaps


def write_patterns(run: RunOnDisk, folder: Path) -> list[Patterns]:
    """Write `regions.csv`, `map_similarity.csv`; per dataset `regions.csv`, `regions.png`, `mean_maps.png`."""
    found = [_dataset_patterns(data, run, folder / data.name) for data in run.datasets]
    patterns = [one for one in found if one is not None]
    if patterns:
        write_group_table(folder / REGIONS_FILE, [group for one in patterns for group in one.regions])
        rows = [
            [one.dataset, layer, *map(table_number, similarity[:3]), *similarity[3:]]
            for one in patterns
            for layer, similarity in one.similarity.items()
        ]
        columns = ("dataset", "layer", "within_real", "within_fake", "across", "reals", "fakes")
        write_table(folder / SIMILARITY_FILE, columns, rows)
    return patterns


def _dataset_patterns(data: DatasetOnDisk, run: RunOnDisk, folder: Path) -> Patterns | None:
    layers = run.layers
    shares: list[RegionShares] = []
    means = MeanMaps(layers)
    for sample in data.samples:
        maps = sample_maps(sample, layers)
        if maps:
            landmarks = sample_landmarks(sample)
            regions, mean_face = region_image(MEAN_FACE if landmarks is None else landmarks), landmarks is None
            shares += [
                RegionShares(sample, layer, region_shares(raw, regions), mean_face) for layer, raw in maps.items()
            ]
            means.add(sample, maps, landmarks)
    if not shares:
        return None
    groups = group_regions(shares, layers)
    write_sample_table(folder / "regions.csv", shares)
    region_heat_table(folder / "regions.png", groups)
    mean_map_table(folder / "mean_maps.png", means, run.manifest.colormap)
    samples = {one.sample.index: one.mean_face for one in shares}
    similarity = {layer: means.similarity(layer) for layer in means.layers}
    return Patterns(data.name, groups, similarity, len(samples), sum(samples.values()), means)


def region_heat_table(path: Path, groups: Sequence[GroupRegions]) -> None:
    """Draw one table per layer: rows are forgery and outcome, columns regions, values mean preferences."""
    rows = list(dict.fromkeys((group.forgery, group.outcome) for group in groups))[:MOST_ROWS]
    width = 2 * NAMES + COLUMN * len(REGIONS)
    lines = [text_line("share of the map ÷ share of the image (1 = no preference)", width, ROW, 14)]
    for layer in dict.fromkeys(group.layer for group in groups):
        found = {(group.forgery, group.outcome): group for group in groups if group.layer == layer}
        names = [text_line(region, COLUMN, ROW, 12, centred=True) for region in REGIONS]
        lines += [np.full((GAP, width, 3), 255, np.uint8), np.hstack([text_line(layer, 2 * NAMES, ROW, 14), *names])]
        lines += [_heat_row(row, found.get(row)) for row in rows]
    table = np.pad(np.vstack(lines), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    write_whole(path, encode(table))


def _heat_row(row: tuple[str, str], group: GroupRegions | None) -> np.ndarray:
    count, values = "no map", [math.nan] * len(REGIONS)
    if group is not None:
        count = f"{group.samples} samples" + ", mean face" * bool(group.mean_faces)
        values = [one.mean for one in group.preference]
    name = text_line(f"{shortened(one_line(row[0]), 40)} · {row[1]}  ({count})", 2 * NAMES, ROW, 12)
    return np.hstack([name, *map(_heat_cell, values)])


def shade(preference: float) -> float:
    """Scale a preference to [-1, 1] logarithmically, so that half and double are equally strong."""
    return math.log(min(max(preference, 1 / STRONGEST), STRONGEST)) / math.log(STRONGEST)


def _heat_cell(value: float) -> np.ndarray:
    """Draw the number on its colour: blue below 1, white at 1, red above."""
    if not np.isfinite(value):
        return text_line("–", COLUMN, ROW, 12, centred=True)
    paper = _diverging(np.full((1, 1), shade(value)))[0, 0].astype(np.int64)
    ink = np.array([255, 255, 255] if abs(shade(value)) > 0.7 else [20, 20, 20])
    # The text is black on white, so its grey level is the transparency.
    line = text_line(f"{value:.1f}", COLUMN - 2, ROW - 2, 13, centred=True, ink=(0, 0, 0))[..., :1] / 255
    cell = (line * paper + (1 - line) * ink).round().astype(np.uint8)
    return np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=255)


def mean_map_table(path: Path, maps: MeanMaps, colormap: str) -> None:
    """Draw mean maps: rows are forgery and outcome, columns layers; the last row is fakes minus reals."""
    layers = maps.layers
    head = [text_line(layer, CELL, LINE, 12, centred=True) for layer in layers]
    rows = [np.hstack([np.full((LINE, NAMES, 3), 255, np.uint8), *map(_padded, head)])]
    for forgery, outcome in maps.groups()[:MOST_ROWS]:
        found = [maps.mean(forgery, outcome, layer) for layer in layers]
        cells = [_cell(None if one is None else _coloured(one[0], colormap)) for one in found]
        counts = ["no map" if one is None else f"{one[1]} samples" for one in found]
        rows.append(_row(f"{shortened(one_line(forgery), 18)} · {outcome}", cells, counts))
    differences = [maps.fake_minus_real(layer) for layer in layers]
    if any(one is not None for one in differences):
        largest = max(float(np.nanmax(np.abs(one))) for one in differences if one is not None) or 1.0
        cells = [_cell(None if one is None else _diverging(one / largest), line=90) for one in differences]
        rows.append(_row("fake − real", cells, [f"red +{largest:.2f}, blue −{largest:.2f}"] * len(layers)))
    write_whole(path, encode(np.vstack(rows)))


def _row(name: str, cells: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    below = (text_line(caption, CELL, LINE, 11, centred=True) for caption in captions)
    columns = [_padded(np.vstack(column)) for column in zip(cells, below, strict=True)]
    left, top = np.full((CELL + LINE, NAMES, 3), 255, np.uint8), CELL // 2 - LINE // 2
    left[top : top + LINE, GAP:] = text_line(name, NAMES - GAP, LINE, 13)
    return np.hstack([left, *columns])


def _padded(cell: np.ndarray) -> np.ndarray:
    return np.pad(cell, ((0, 0), (GAP // 2, GAP // 2), (0, 0)), constant_values=255)


def _cell(image: np.ndarray | None, line: int = 255) -> np.ndarray:
    """Draw a cell (CELL, CELL, 3) uint8 with the mean face's regions outlined in grey `line`; grey without image."""
    cell = np.full((CELL, CELL, 3), 128, np.uint8) if image is None else cv2.resize(image, (CELL, CELL))
    regions = region_image(MEAN_FACE, CELL)
    border = cv2.morphologyEx(regions, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    return np.where(border[..., None], cell // 2 + line // 2, cell).astype(np.uint8)


def _coloured(mean: np.ndarray, colormap: str) -> np.ndarray:
    coloured = colour(torch.from_numpy(np.nan_to_num(mean)), colormap).numpy()
    return np.where(np.isfinite(mean)[..., None], coloured, 128).astype(np.uint8)


def _diverging(values: np.ndarray) -> np.ndarray:
    """Colour values in [-1, 1]: -1 blue, 0 white, 1 red, NaN grey."""
    ends = np.where(values[..., None] > 0, np.array([178, 24, 43]), np.array([33, 102, 172]))
    mixed = 255 + (ends - 255) * np.abs(np.nan_to_num(values))[..., None]
    return np.where(np.isfinite(values)[..., None], mixed, 128).astype(np.uint8)
