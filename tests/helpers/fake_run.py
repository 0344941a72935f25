"""A run's folder made for tests, by the library's own writers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.gradcam_kit.drawing.overlays import LayerImage, original_box
from utils.gradcam_kit.store.database import RunDatabase
from utils.gradcam_kit.store.manifest import DatasetRecord, HeatmapCounts, Manifest, Numbers, Weights
from utils.gradcam_kit.store.sample import LayerFacts, Sample
from utils.gradcam_kit.store.sample_folder import RenderedSample, write_sample
from utils.gradcam_kit.store.sample_writer import SampleWriter
from utils.gradcam_kit.store.tables import write_dataset_tables, write_run_tables

LAYERS = ("encoder.layers.5", "encoder.layers.3")
GRID, PIXELS = 4, 64


class Row(NamedTuple):
    """One explained frame. `hot`: row and column of the one hot patch of the first layer, (1, 1) of the second."""

    number: int
    dataset: str
    forgery: str
    video: str
    label: int
    prob_fake: float
    path: str
    hot: tuple[int, int] = (3, 2)

    @property
    def outcome(self) -> str:
        fake = self.prob_fake > 0.5
        return ("T" if fake == bool(self.label) else "F") + ("P" if fake else "N")

    @property
    def confidence(self) -> float:
        return max(self.prob_fake, 1 - self.prob_fake)


def image_of(row: Row) -> np.ndarray:
    """A plain grey-green image, so that a colour over it can be computed by hand."""
    return np.full((PIXELS, PIXELS, 3), (90, 120, 60), dtype=np.uint8)


def raw_map(hot: tuple[int, int], height: float = 0.004) -> np.ndarray:
    raw = np.zeros((GRID, GRID), dtype=np.float32)
    raw[hot] = height
    return raw


def layer_image(name: str, image: np.ndarray, raw: np.ndarray, signed: np.ndarray, empty: bool = False) -> LayerImage:
    """One layer of an image, drawn empty where it is."""
    return LayerImage(name=name, overlay=image, raw=raw, signed=signed, empty=empty, drawn_empty=empty)


def drawn_of(row: Row, empty: bool = False) -> RenderedSample:
    """The sample as it is drawn."""
    layers = []
    for layer, hot in zip(LAYERS, (row.hot, (1, 1)), strict=True):
        raw = np.zeros((GRID, GRID), np.float32) if empty else raw_map(hot)
        layers.append(layer_image(layer, image_of(row), raw, raw - 0.001, empty))
    return RenderedSample(sample_of(row, layers), image_of(row), layers)


def write_row(folder: Path, row: Row, empty: bool = False) -> Path:
    """The sample as a run leaves it: its folder and, in a run that `write_tables` has begun, its rows."""
    drawn, place = drawn_of(row, empty), folder / row.dataset / f"sample{row.number}"
    if not (folder / "run.sqlite").is_file():
        write_sample(place, drawn)
        return place
    write_drawn(folder, drawn, (PIXELS, PIXELS))
    return place


def write_drawn(folder: Path, drawn: RenderedSample, spanned: tuple[int, int]) -> None:
    """A sample's folder and its rows, in a run that `write_tables` has begun."""
    with (
        RunDatabase(folder / "run.sqlite", writes=True) as database,
        SampleWriter(database, "", folder / drawn.sample.dataset) as writer,
    ):
        writer.write(drawn, {layer.name: spanned for layer in drawn.layers})


def with_values(**values: Any) -> Callable[[Any], Any]:
    """For `changed_row`, of a column of JSON."""
    return lambda text: json.dumps({**json.loads(text), **values})


def changed_row(folder: Path, table: str, column: str, change: Callable[[Any], Any], where: str = "1 = 1") -> None:
    """Change a value as somebody does who also makes the row's hash right again."""
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite")) as database:
        for name, value in database.execute(f"SELECT rowid, {column} FROM {table} WHERE {where}").fetchall():
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [change(value), name])
            *row, _ = database.execute(f"SELECT * FROM {table} WHERE rowid = ?", [name]).fetchone()
            right = hashlib.blake2b(repr(tuple(row)).encode(), digest_size=12).hexdigest()
            database.execute(f"UPDATE {table} SET hash = ? WHERE rowid = ?", [right, name])
        database.commit()


def sample_of(row: Row, layers: Sequence[LayerImage] = ()) -> Sample:
    """As the library makes it of an explained frame."""
    return Sample(
        index=row.number, path=row.path, dataset=row.dataset, forgery=row.forgery, video=row.video, label=row.label,
        prob_fake=row.prob_fake, logit_real=-1.0, logit_fake=1.0, target="predicted (fake)", method="gradcam", site="layer_norm1",
        backward="plain", weights="weights.pth", layers=[LayerFacts.of(layer) for layer in layers],
        original=original_box((PIXELS, PIXELS), 1 + len(layers), False),
    )  # fmt: skip


def write_tables(folder: Path, rows: Sequence[Row], finished: bool = True) -> None:
    """The database of a run, or of one under way, and the tables that are made of it."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    for dataset in datasets:
        (folder / dataset).mkdir(parents=True, exist_ok=True)
    frames = {name: sum(row.dataset == name for row in rows) for name in datasets}
    manifest = some_manifest(
        config={"model_name": "clip_gradcam", "gradcam_colormap": "jet"},
        weights=Weights("weights.pth", "ab" * 32),
        datasets={name: DatasetRecord(count, "cd" * 32, "ef" * 32) for name, count in frames.items()},
        heatmaps={name: HeatmapCounts(heatmaps=count) for name, count in frames.items()} if finished else None,
        finished="2024-01-01T01:00:00+00:00" if finished else None,
    )
    metrics = {name: {"acc": 0.5, "auc": 0.75, "eer": None, "ap": 0.6, "video_auc": 0.7, "frames": 4, "videos": 2,
                      "unreadable": 0} for name in datasets}  # fmt: skip
    with RunDatabase(folder / "run.sqlite", writes=True, new=True) as database:
        database.put("run", [(1, json.dumps(manifest.to_json()), json.dumps(metrics) if finished else "", finished)])
        database.put("frame", [(row.dataset, row.number, row.path, row.forgery, row.video, row.label, -1.0, 1.0,
                                row.prob_fake, "", "0 0 ") for row in rows])  # fmt: skip
        if finished:
            write_run_tables(database, folder)
            for dataset in datasets:
                write_dataset_tables(database, dataset, folder / dataset)


def some_manifest(**changes: Any) -> Manifest:
    """Of a run that has begun."""
    values: dict[str, Any] = {
        "command": ["test_with_gradcam.py", "--seed", "7"],
        "started": "2024-01-01T00:00:00+00:00",
        "config": {
            "model_name": "clip_gradcam",
            "workers": 2,
            "backbone_config": {"architecture": {"hidden_size": 32}},
        },
        "settings": Numbers(5, 7),
        "weights": Weights("best.pth", "ab" * 32),
        "datasets": {"toy": DatasetRecord(24, "cd" * 32, "ef" * 32)},
        "options": {"precision": "fp32", "resume": False, "views": [None, False, False]},
        "device": "cpu",
        "threads": 4,
        "versions": {"python": "3.8.0", "torch": "2.1.0"},
        "top_files": ["metrics.json", "index.html"],
    }
    return Manifest(**{**values, **changes})


def write_run(folder: Path, rows: Sequence[Row], finished: bool = True) -> Path:
    """All of it."""
    write_tables(folder, rows, finished)
    for row in rows:
        write_row(folder, row)
    return folder


def write_large_run(folder: Path, rows: Sequence[Row]) -> Path:
    """As `write_run`, for thousands of samples: images are links to one sample's."""
    write_tables(folder, rows)
    model = write_row(folder, rows[0])
    files = json.dumps({path.relative_to(model).as_posix(): "" for path in model.rglob("*.*")})
    with RunDatabase(folder / "run.sqlite", writes=True) as database:
        for row in rows[1:]:
            place, drawn = folder / row.dataset / f"sample{row.number}", drawn_of(row)
            (place / "heatmaps").mkdir(parents=True)
            for file in model.rglob("*.png"):
                os.link(file, place / file.relative_to(model))
            database.put("map", [(row.dataset, row.number, layer.name, GRID, GRID, PIXELS, PIXELS,
                                  layer.raw.tobytes(), layer.signed.tobytes()) for layer in drawn.layers])  # fmt: skip
            facts = json.dumps(drawn.sample.to_json())
            database.put("sample", [(row.dataset, row.number, facts, files, "")])
    return folder


def some_rows(data: Path) -> list[Row]:
    """Two datasets, four forgeries, every outcome; the frames' own files are not there."""
    rows = []
    kinds = [("faces", "real_Real", 0), ("faces", "swap_Fake", 1), ("faces", "reenact_Fake", 1), ("others", "gan", 1)]
    for k, (dataset, forgery, label) in enumerate(kinds):
        for i in range(6):
            number = 100 * k + i
            prob = (0.03, 0.31, 0.48, 0.62, 0.85, 0.97)[(i + k) % 6]
            path = f"{data}/{forgery}/frames/{i // 2:03d}/{i:03d}.png"
            rows.append(Row(number, dataset, forgery, f"{i // 2:03d}", label, prob, path))
    return rows


def remove_images(sample_folder: Path) -> None:
    """What a user does who is short of disk."""
    for file in sample_folder.glob("*.png"):
        file.unlink()
    shutil.rmtree(sample_folder / "heatmaps")
