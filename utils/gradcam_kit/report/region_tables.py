"""Region shares of a run → CSV tables: every sample, and dataset × forgery × outcome with intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.files import write_table
from ..judge.bootstrap import Interval, VideoBootstrap
from ..store.read_run import OUTCOMES
from .face_regions import REGIONS, RegionShares


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRegions:
    """Mean preferences of the samples of one dataset, forgery, outcome and layer, in the order of REGIONS."""

    dataset: str
    forgery: str
    outcome: str
    layer: str
    samples: int
    videos: int
    mean_faces: int  # samples without landmarks, whose regions are the mean face's
    preference: list[Interval]  # with one video there is no interval: low and high are NaN

    @property
    def layout(self) -> str:
        """Whose regions these are."""
        if not self.mean_faces:
            return "landmarks"
        return "mean face" if self.mean_faces == self.samples else f"mean face for {self.mean_faces}"

    def headline(self) -> str:
        """The region with the highest preference, as a line: `deepfacelab: 3.1 × on the boundary ring (2.8–3.4)`."""
        # Whatever the crop, some region is in the image, so one mean at least is a number.
        top = int(np.nanargmax([one.mean for one in self.preference]))
        best = self.preference[top]
        interval = f" ({best.low:.1f}–{best.high:.1f})" if math.isfinite(best.low) else ""
        return f"{self.forgery}: {best.mean:.1f} × on the {REGIONS[top]}{interval}"


def group_regions(shares: Sequence[RegionShares], layers: Sequence[str]) -> list[GroupRegions]:
    """Groups in order of dataset and forgery as the samples come, outcome (TP, FP, TN, FN) and layer."""
    groups: dict[tuple[str, str, str, str], list[RegionShares]] = {}
    for one in shares:
        groups.setdefault((one.sample.dataset, one.sample.forgery, one.sample.outcome, one.layer), []).append(one)
    forgeries = list(dict.fromkeys(key[:2] for key in groups))
    found = []
    for dataset, forgery in forgeries:
        for outcome, layer in itertools.product(OUTCOMES, layers):
            members = groups.get((dataset, forgery, outcome, layer))
            if members:
                videos = [one.sample.video for one in members]
                bootstrap = VideoBootstrap(videos, seed=0, resamples=1000)
                found.append(GroupRegions(
                    dataset=dataset, forgery=forgery, outcome=outcome, layer=layer,
                    samples=len(members), videos=len(set(videos)), mean_faces=sum(one.mean_face for one in members),
                    preference=bootstrap.intervals(np.stack([one.preference for one in members])),
                ))  # fmt: skip
    return found


def headlines(groups: Sequence[GroupRegions], layer: str) -> list[GroupRegions]:
    """At one layer, per forgery, the most informative group: its detected fakes, or else the largest."""
    best: dict[tuple[str, str], GroupRegions] = {}
    for group in groups:
        if group.layer == layer:
            known = best.get((group.dataset, group.forgery))
            if known is None or (known.outcome != "TP" and group.samples > known.samples):
                best[group.dataset, group.forgery] = group
    return list(best.values())


# ------------------------------------------------------------------------------------------------------------ files


def write_sample_table(path: Path, shares: Sequence[RegionShares]) -> None:
    """One row per sample and layer, one column of preference per region."""
    rows = [
        [one.sample.index, one.sample.forgery, one.sample.video, one.sample.outcome, one.layer,
         "mean face" if one.mean_face else "landmarks", *map(table_number, one.preference)]
        for one in shares
    ]  # fmt: skip
    write_table(path, ("index", "forgery", "video", "outcome", "layer", "layout", *REGIONS), rows)


def write_group_table(path: Path, groups: Sequence[GroupRegions]) -> None:
    """One row per group and region."""
    columns = (
        "dataset", "forgery", "outcome", "layer", "region", "preference", "low", "high", "samples", "videos", "layout",
    )  # fmt: skip
    rows = [
        [group.dataset, group.forgery, group.outcome, group.layer, region,
         *map(table_number, interval[:3]), group.samples, group.videos, group.layout]
        for group in groups
        for region, interval in zip(REGIONS, group.preference, strict=True)
    ]  # fmt: skip
    write_table(path, columns, rows)


def table_number(value: float) -> str:
    """Of a CSV table: four decimals, nothing where there is none."""
    return f"{value:.4f}" if math.isfinite(value) else ""
