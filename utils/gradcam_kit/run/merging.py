"""`python -m utils.run merge A B … -o RUN`: join shards, each evaluated separately, into one run."""

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
from ..base.files import create_output_folder
from ..data.frame import Frame
from ..judge.verdict import Choice
from ..settings.run_options import ExportOptions, without_flags
from ..store.database import RunDatabase
from ..store.manifest import HeatmapCounts, Manifest
from ..store.read_run import reader
from ..store.run_folder import RunFolder, read_manifest
from ..store.tables import write_run_tables
from .predictions import Predictions
from .summary import DatasetSummary, counts_of, finish_run, write_summary

Shard = tuple[Path, RunDatabase, Manifest]


def main(argv: Sequence[str]) -> int:
    """Run the command `merge`. Raises InputError."""
    p = OneLineParser(
        "python -m utils.run merge SHARD SHARD -o RUN",
        "Join the shards of a run (--shard 1/8, 2/8, …) into one run, as if it had not been split.",
    )
    p.add_argument("command", choices=("merge",), help="the only command")
    p.add_argument("shards", nargs="+", type=Path, metavar="SHARD", help="a shard's --gradcam_output_dir")
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="RUN", help="the joined run's folder, new or empty"
    )
    flags = p.parse_args(argv)
    merge(flags.shards, flags.output)
    return 0


def merge(folders: Sequence[Path], output: Path) -> None:
    """Join shards into the run `output`. If they are not shards of one run, raise InputError and write nothing."""
    shards = [(folder, reader(folder), read_manifest(reader(folder))) for folder in folders]
    check_shards(shards)
    check_complete(shards)
    _, first, of_first = shards[0]
    options = {**of_first.options, "shard": None}
    manifest = replace(of_first, options=options, command=whole_command(of_first.command, output))
    with RunFolder.open(output, manifest, key=first.own("key")) as folder:
        for place, database, _ in shards:
            folder.database.absorb(database)
            copy_samples(place, database, output)
        if left := left_to_do(manifest):
            write_run_tables(folder.database, output)
            command = shlex.join([sys.executable, *manifest.command, "--resume"])
            print(f"{output}: {len(shards)} shards are joined; still to do: {left}; run {command}")
            return
        finish(folder)


def check_shards(shards: Sequence[Shard]) -> None:
    """Raise InputError unless these are all shards of one run, each once."""
    first, _, of_first = shards[0]
    by_number: dict[int, Path] = {}
    for folder, database, manifest in shards:
        number = manifest.options.get("shard")
        if not number:
            raise InputError(f"{folder}: is not a shard (its run had no --shard); give only folders of shards")
        if number[1] != of_first.options["shard"][1]:
            raise InputError(
                f"{folder}: is shard {number[0]}/{number[1]}, but {first} is one of {of_first.options['shard'][1]}"
            )
        if number[0] in by_number:
            raise InputError(
                f"{folder}: is shard {number[0]}/{number[1]}, and so is {by_number[number[0]]}; give each once"
            )
        by_number[number[0]] = folder
        if differences := manifest.differences(of_first):
            raise InputError(f"{folder}: is not from the same run as {first}: {'; '.join(differences[:3])}")
        if database.own("key") != shards[0][1].own("key"):
            raise InputError(f"{folder}: was not made by the same code as {first}; make it again with that code")
    count = of_first.options["shard"][1]
    if missing := [str(i) for i in range(1, count + 1) if i not in by_number]:
        raise InputError(f"shard {', '.join(missing[:10])} of {count} is missing: run it, then give its folder too")


def check_complete(shards: Sequence[Shard]) -> None:
    """Raise InputError if a shard has not finished."""
    for name, record in shards[0][2].datasets.items():
        counts = {place: database.count("frame", "WHERE dataset = ?", name) for place, database, _ in shards}
        there = sum(counts.values())
        if there != record.frames:
            fewest = min(counts, key=lambda place: counts[place])
            raise InputError(
                f"{there} of {record.frames} frames of {name} are in the shards: one has not finished, perhaps"
                f" {fewest}; continue it with --resume, then merge into a new folder"
            )


def left_to_do(manifest: Manifest) -> str:
    """Name the steps that need every frame, so that no shard could do them; "" if there are none."""
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
    """Turn a shard's command into the whole run's: without --shard, and with its output folder."""
    kept = without_flags(command, "--shard", "--gradcam_output_dir", "--output", "--run_database")
    return [*kept, "--gradcam_output_dir", str(output)]


def copy_samples(place: Path, database: RunDatabase, output: Path) -> None:
    for dataset, index, _, files, *_ in database.rows("sample", "WHERE lost = ''"):
        source = place / dataset / f"sample{index}"
        if json.loads(files) and source.is_dir():
            create_output_folder(output / dataset)
            shutil.copytree(source, output / dataset / source.name, dirs_exist_ok=True)


def finish(folder: RunFolder) -> None:
    """Write everything that is made from predictions and samples."""
    manifest, row = folder.manifest, folder.database.first_row("calibration")
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
