"""Patterns across the maps of a run: regions of the face and mean maps, from the run's files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..base.files import write_table
from ..run.exports import REGIONS_FILE, SIMILARITY_FILE
from ..store.read_run import DatasetOnDisk, RunOnDisk, sample_maps
from .aggregate_images import mean_map_table, region_heat_table
from .face_regions import RegionShares, sample_landmarks, sample_regions
from .mean_maps import MeanMaps, Similarity
from .region_tables import GroupRegions, group_regions, table_number, write_group_table, write_sample_table


class Patterns(NamedTuple):
    """The patterns of one dataset."""

    dataset: str
    regions: list[GroupRegions]
    similarity: dict[str, Similarity]
    samples: int  # with at least one map that is not empty
    mean_faces: int  # of them without landmarks
    means: MeanMaps


def write_patterns(run: RunOnDisk) -> list[Patterns]:
    """`regions.csv`, `map_similarity.csv`, and per dataset `regions.csv`, `regions.png` and `mean_maps.png`.

    Datasets without a map are left out; where there is none at all nothing is written.
    """
    found = [_dataset_patterns(data, run.layers, run.manifest.colormap) for data in run.datasets]
    patterns = [one for one in found if one is not None]
    if patterns:
        write_group_table(run.folder / REGIONS_FILE, [group for one in patterns for group in one.regions])
        _write_similarity(run.folder / SIMILARITY_FILE, patterns)
    return patterns


def _dataset_patterns(data: DatasetOnDisk, layers: list[str], colormap: str) -> Patterns | None:
    shares: list[RegionShares] = []
    means = MeanMaps(layers)
    for sample in data.samples:
        maps = sample_maps(sample, layers)
        if maps:
            landmarks = sample_landmarks(sample)
            shares += sample_regions(sample, maps, landmarks)
            means.add(sample, maps, landmarks)
    if not shares:
        return None
    groups = group_regions(shares, layers)
    write_sample_table(data.folder / "regions.csv", shares)
    region_heat_table(data.folder / "regions.png", groups)
    mean_map_table(data.folder / "mean_maps.png", means, colormap)
    samples = {one.sample.index: one.mean_face for one in shares}
    similarity = {layer: means.similarity(layer) for layer in means.layers}
    return Patterns(data.name, groups, similarity, len(samples), sum(samples.values()), means)


def _write_similarity(path: Path, patterns: list[Patterns]) -> None:
    rows = [
        [one.dataset, layer, *map(table_number, similarity[:3]), *similarity[3:]]
        for one in patterns
        for layer, similarity in one.similarity.items()
    ]
    write_table(path, ("dataset", "layer", "within_real", "within_fake", "across", "reals", "fakes"), rows)
