"""The output folder of a run: locking it, and refusing, resuming or setting aside an earlier run."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..base.errors import InputError, RunError
from ..base.files import create_output_folder, set_aside, write_whole
from ..base.text import printable
from ..judge.verdict import Choice
from .database import ELSEWHERE, FILE, TABLES, Busy, RunDatabase, database_of, has_begun, is_run
from .manifest import MANIFEST, HeatmapCounts, Manifest, check_names, parse_json


@dataclass(eq=False)
class RunFolder:
    """An output folder that belongs to this run until the end of the `with` block.

    `key` is a hash of everything that predictions depend on. `finished`: an earlier call has finished this run, and its
    rows are unchanged. A pickled folder has no database, which stays with the process that opened it.
    """

    path: Path
    manifest: Manifest
    key: str
    _place: Path
    _database: RunDatabase | None
    finished: bool = False
    metrics: Mapping[str, Any] | None = None  # None until the run has finished
    _part: Path | None = None  # of another process of the run: its own database

    @classmethod
    def open(
        cls,
        path: Path,
        manifest: Manifest,
        overwrite: bool = False,
        resume: bool = False,
        database: Path | None = None,
        key: str = "",
    ) -> RunFolder:
        """Open `path` for a run. It must be new or empty, except with `overwrite` or, for the same run, `resume`.

        `database`: its path, if it is not in the folder. `key`: as in RunFolder. Raises InputError.
        """
        own = database_of(path)
        place = database or own
        if place.absolute() != own.absolute() and has_begun(own):
            raise InputError(
                f"output folder {path}: holds a run with the database {own}; give --run_database {own} too, or another"
                " --gradcam_output_dir"
            )
        check_names(manifest.datasets, (*manifest.top_files, ELSEWHERE, place.name))
        try:
            goes_on = resume and has_begun(place)
            if not goes_on:
                _make_room(path, place, overwrite)
            path.mkdir(parents=True, exist_ok=True)
            if database_of(path).absolute() != place.absolute():
                write_whole(path / ELSEWHERE, f"{place.absolute()}\n".encode())
            if not goes_on:
                place.open("ab").close()  # an error of the system gives the reason, SQLite's does not
            folder = cls(path, manifest, key, place, RunDatabase(place, writes=True, new=not goes_on))
            try:
                if goes_on:
                    folder._go_on()
                else:
                    folder.record()
                for name in manifest.datasets:
                    create_output_folder(path / name)
            except BaseException:
                folder.database.close()
                raise
            return folder
        except OSError as error:
            raise InputError(f"output folder {path}: cannot be written ({error.strerror}); give another one") from error

    def _go_on(self) -> None:
        """Continue an earlier call's run. Raises InputError if it was another run."""
        database, manifest = self.database, self.manifest
        changed = database.forget_changed()
        earlier = read_manifest(database)
        differences = manifest.differences(earlier)
        if (shards := [one.options.get("shard") for one in (earlier, manifest)])[0] != shards[1]:
            differences.append(f"options.shard was {shards[0]} and is {shards[1]}")
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise InputError(
                f"--resume: {self._place} is from another run: {'; '.join(differences[:3])}{more};"
                " give the first run's settings, or another --gradcam_output_dir, or --overwrite to start again"
            )
        top_files = list(dict.fromkeys((*earlier.top_files, *manifest.top_files)))
        self.manifest = replace(earlier, top_files=top_files)
        self.absorb(remove=True)
        stale = database.count("frame", "WHERE key IS NOT ?", self.key)
        if changed or stale:
            reasons = [f"{count} rows of {table} were changed" for table, count in changed.items()]
            reasons += [f"{stale} predictions come from other code"] if stale else []
            print(printable(f"--resume: {self._place}: {'; '.join(reasons)}: computed again"), file=sys.stderr)
            self.manifest = replace(self.manifest, finished=None, heatmaps=None, choice=None)
            self.record()
        if self.manifest.finished is not None:
            self.finished, self.metrics = True, json.loads(database.own("metrics"))

    @property
    def database(self) -> RunDatabase:
        """The database, in the process that opened the folder."""
        assert self._database is not None
        return self._database

    def record(self, exported: bool = False) -> None:
        """Write the run's own row. `exported`: whether all requested exports are done."""
        values = json.dumps(self.manifest.to_json(), default=str)
        given = json.dumps(self.metrics) if self.metrics is not None else ""
        self.database.put("run", [(1, values, given, exported)], self.key)
        self.database.commit()

    def finish(
        self, metrics: Mapping[str, Any], heatmaps: Mapping[str, HeatmapCounts], choice: Choice | None = None
    ) -> None:
        """Record that the run is complete, except for exports. Raises RunError if the database is gone."""
        self.manifest = replace(self.manifest, finished=now(), heatmaps=dict(heatmaps), choice=choice)
        self.metrics = metrics
        self.record()

    @contextmanager
    def reading(self) -> Iterator[RunDatabase]:
        """Yield the run's database: the open one, or in another process of the run a reader."""
        if self._database is not None and not self._part:
            yield self._database
            return
        with RunDatabase(self._place, writes=False) as database:
            yield database

    def join(self, rank: int) -> None:
        """Open a separate database in another process of the run; `absorb` copies it into the run's.

        Raises RunError if this process does not see the run's.
        """
        if not self._place.is_file():
            raise RunError(f"process {rank} does not see the run in {self.path}: all need the same folder")
        if self._database is None:
            self._part = self._place.with_name(f"{self._place.stem}.{rank}{self._place.suffix}")
            self._database = RunDatabase(self._part, writes=True, new=True)

    def absorb(self, remove: bool = False) -> None:
        """Copy the databases of other processes into the run's. `remove`: they are left from a killed run; delete them.

        Raises InputError if a process of that run is still writing.
        """
        for part in _parts_of(self._place):
            if has_begun(part):  # a kill may leave an empty one
                with RunDatabase(part, writes=remove) as other:
                    self.database.absorb(other)
            if remove:
                part.unlink()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._database is not None:
            empty = self._part is not None and not any(map(self._database.count, TABLES))
            self._database.close()
            if self._part is not None and empty:
                self._part.unlink()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_database": None}


def now() -> str:
    """Return the current time in a manifest's format."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_manifest(database: RunDatabase) -> Manifest:
    """Read the manifest in a database. Raises InputError."""
    return Manifest.from_json(parse_json(database.own("manifest"), database.path), str(database.path))


def _parts_of(place: Path) -> list[Path]:
    """Return the databases of the run's other processes; `place`: the run's own database."""
    alike = place.parent.glob(f"{glob.escape(place.stem)}.*{place.suffix}")
    return sorted(path for path in alike if path.stem[len(place.stem) + 1 :].isdecimal())


def _make_room(path: Path, place: Path, overwrite: bool) -> None:
    """Set an earlier run aside if `overwrite`. Raises InputError if the folder holds anything else."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output folder {path}: is a file; give a folder")
    # Files that exist before the first transaction.
    begun = (FILE, f"{FILE}-journal", place.name, f"{place.name}-journal", ELSEWHERE, f".{ELSEWHERE}.partial")
    inside = [one for one in path.iterdir() if one.name not in begun] if path.is_dir() else []
    there = has_begun(place)
    if not inside and not there:
        return
    if not there:
        earlier = any((path / name).is_file() for name in (MANIFEST, "manifest.partial.json"))
        holds = f"holds a run of an earlier version, without {FILE}" if earlier else "is not empty, and holds no run"
        raise InputError(f"output folder {path}: {holds}; give another --gradcam_output_dir, or rename it yourself")
    if not overwrite:
        where = f"output folder {path}" if place.parent == path else f"--run_database {place}"
        raise InputError(f"{where}: holds an earlier run; give another --gradcam_output_dir, --resume or --overwrite")
    if not is_run(place):
        raise InputError(f"{place}: is not a run's database, so --overwrite does not touch it; give another path")
    try:
        RunDatabase(place, writes=True).close()
    except Busy:
        raise
    except InputError:
        pass  # a damaged database is set aside too
    for one in (path,) if place.parent == path else (place, *_parts_of(place), path):
        if one.exists():
            print(printable(f"--overwrite: {one} is now {set_aside(one)}"), file=sys.stderr)
