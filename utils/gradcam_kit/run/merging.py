"""`python -m utils.run merge A B … -o RUN`: shards, each evaluated on its own, as the run that they are parts of."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..base.command import OneLineParser
from ..base.errors import InputError
from ..base.files import own_folder
from ..data.frame import Frame
from ..judge.verdict import Choice
from ..settings.run_options import ExportOptions
from ..store.database import RunDatabase
from ..store.manifest import HeatmapCounts, Manifest
from ..store.read_run import reader
from ..store.run_folder import RunFolder, read_manifest
from ..store.tables import write_run_tables
from .dataset_run import counts_of, write_summary
from .predictions import Predictions
from .summary import DatasetSummary, finish_run

Shard = tuple[Path, RunDatabase, Manifest]


def main(argv: Sequence[str]) -> int:
    """The only command so far. Raises InputError."""
    p = OneLineParser("merge: the shards of a run (--shard 1/8, 2/8, …) become one run, as if it had never been split.")
    p.add_argument("command", choices=("merge",), help="what to do")
    p.add_argument("shards", nargs="+", type=Path, metavar="SHARD", help="the --gradcam_output_dir of a shard")
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="RUN", help="the whole run's folder: new, or empty"
    )
    flags = p.parse_args(argv)
    merge(flags.shards, flags.output)
    return 0


def merge(folders: Sequence[Path], output: Path) -> None:
    """Write the run. Raises InputError for shards that are not all of one run, before anything is written."""
    shards = [(folder, reader(folder), read_manifest(reader(folder))) for folder in folders]
    check_shards(shards)
    check_complete(shards)
    _, first, of_first = shards[0]
    options = {**of_first.options, "shard": None}
    manifest = replace(of_first, options=options, command=whole_command(of_first.command, output))
    own = first.one("run")
    assert own is not None  # as read_manifest has seen
    with RunFolder.open(output, manifest, key=own[-1]) as folder:
        for place, database, _ in shards:
            folder.database.absorb(database)
            copy_samples(place, database, output)
        if left := left_to_do(manifest):
            write_run_tables(folder.database, output)
            command = " ".join(map(shlex.quote, [sys.executable, *manifest.command, "--resume"]))
            print(f"{output}: {len(shards)} shards are merged; {left} is left to do: {command}")
            return
        finish(folder)


def check_shards(shards: Sequence[Shard]) -> None:
    """Raises InputError unless these are all shards of one run, each once."""
    first, _, of_first = shards[0]
    by_number: dict[int, Path] = {}
    for folder, database, manifest in shards:
        number = manifest.options.get("shard")
        if not number:
            raise InputError(f"{folder}: is no shard (its run had no --shard); give the folders of shards alone")
        if number[1] != of_first.options["shard"][1]:
            raise InputError(
                f"{folder}: is shard {number[0]}/{number[1]}, and {first} one of {of_first.options['shard'][1]}"
            )
        if number[0] in by_number:
            raise InputError(
                f"{folder}: is shard {number[0]}/{number[1]}, as {by_number[number[0]]} is; give each once"
            )
        by_number[number[0]] = folder
        own, other = (one.one("run") for one in (database, shards[0][1]))
        if differences := manifest.differences(of_first):
            raise InputError(f"{folder}: is of another run than {first}: {'; '.join(differences[:3])}")
        if own is None or other is None or own[-1] != other[-1]:
            raise InputError(f"{folder}: was made by other code than {first}; make it again with the same code")
    count = of_first.options["shard"][1]
    if missing := [str(i) for i in range(1, count + 1) if i not in by_number]:
        raise InputError(f"shard {', '.join(missing[:10])} of {count} is missing: run it, then give its folder, too")


def check_complete(shards: Sequence[Shard]) -> None:
    """Raises InputError where a shard was not evaluated to its end."""
    for name, record in shards[0][2].datasets.items():
        counts = {place: database.count("frame", "WHERE dataset = ?", name) for place, database, _ in shards}
        there = sum(counts.values())
        if there != record.frames:
            fewest = min(counts, key=lambda place: counts[place])
            raise InputError(
                f"{there} of {record.frames} frames of {name} are in the shards: one has not finished, perhaps"
                f" {fewest}; its command with --resume goes on; then merge into a new folder"
            )


def left_to_do(manifest: Manifest) -> str:
    """What a shard cannot do, since it depends on every frame, in words; empty where nothing is left."""
    options, config = manifest.options, manifest.config
    explains = bool(config.get("gradcam_enabled"))
    parts = {
        "explaining the chosen samples": explains
        and not (options["save_all"] and config.get("gradcam_samples") is None),
        "features": bool(options["save_features"]),
        "measuring": options["explanations"] is not None,
    }
    return ", ".join(part for part, wanted in parts.items() if wanted)


def whole_command(command: Sequence[str], output: Path) -> list[str]:
    """A shard's command as the whole run's: without --shard, with its own output folder."""
    kept: list[str] = []
    skip = False
    for one in command:
        if skip or one in ("--resume", "--overwrite"):
            skip = False
            continue
        name, _, value = one.partition("=")
        if name in ("--shard", "--gradcam_output_dir", "--output", "--run_database"):
            skip = not value
            continue
        kept.append(one)
    return [*kept, "--gradcam_output_dir", str(output)]


def copy_samples(place: Path, database: RunDatabase, output: Path) -> None:
    """The files of a shard's samples."""
    for dataset, index, _, files, *_ in database.rows("sample", "WHERE lost = ''"):
        source = place / dataset / f"sample{index}"
        if json.loads(files) and source.is_dir():
            own_folder(output / dataset)
            shutil.copytree(source, output / dataset / source.name, dirs_exist_ok=True)


def finish(folder: RunFolder) -> None:
    """All that is made of predictions and samples."""
    manifest, row = folder.manifest, folder.database.one("calibration")
    choice = Choice.from_json(json.loads(row[1])) if row else None
    results: list[DatasetSummary] = []
    for name in manifest.datasets:
        rows = list(folder.database.rows("frame", "WHERE dataset = ?", name))
        predictions = Predictions([Frame(row[2], name, row[3], row[4], row[5], row[1]) for row in rows])
        predictions.restore(rows)
        counts = HeatmapCounts()
        if manifest.config.get("gradcam_enabled"):
            counts = counts_of(folder.database, name, predictions.choose(None, False, "first", 0))
        results.append(write_summary(folder, predictions, counts))
    finish_run(folder, results, choice, ExportOptions(), manifest.options["max_unreadable"])
