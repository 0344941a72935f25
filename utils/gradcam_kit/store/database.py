"""`run.sqlite` holds all results of a run and survives a kill. The other files of the folder are made from it.

There is one writer at a time, and one transaction per batch or per few quick batches. Each row ends with the key of
its inputs and a hash of its values, so that stale and edited rows are detected.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..base.errors import InputError, RunError

FILE = "run.sqlite"
ELSEWHERE = "run_database.txt"  # holds the path of the database, if it is elsewhere (--run_database)
APPLICATION_ID, VERSION = 0x67636D31, 1
PAUSE = 0.5  # minimum seconds between two commits, which take 18 ms each on a busy disk
PATIENCE = 60  # seconds that a writer and a reader wait for each other; neither blocks for longer than a batch
# Table → (length of the primary key, columns).
TABLES = {
    "run": (1, "id manifest metrics exported"),
    "frame": (2, "dataset idx path forgery video label logit_real logit_fake prob_fake reason stamp"),
    "sample": (2, "dataset idx facts files lost"),
    "map": (3, "dataset idx layer rows columns span_rows span_columns raw signed"),
    "feature": (2, "dataset idx vector"),
    "calibration": (1, "name choice"),
    "measurement": (2, "dataset name content"),
}
BINARY = ("map", "feature", "measurement")  # in other tables bytes stand for a string that is not valid UTF-8
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
IS_EMPTY = "SELECT count(*) = 0 FROM sqlite_master"
DatabaseRow = tuple[Any, ...]


def database_of(folder: Path) -> Path:
    """Return the path of the database of a run's folder, whether it exists or not."""
    pointer = folder / ELSEWHERE
    return Path(pointer.read_text(encoding="utf-8").rstrip("\n")) if pointer.is_file() else folder / FILE


def is_run(path: Path) -> bool:
    """Tell whether a file begins like a run's database. The rest may be damaged."""
    with path.open("rb") as file:
        head = file.read(100)
    return head[:16] == b"SQLite format 3\0" and int.from_bytes(head[68:72], "big") == APPLICATION_ID


def has_begun(path: Path) -> bool:
    """Tell whether a run has committed anything. A kill may leave a file without a finished transaction."""
    if not (path.is_file() and path.stat().st_size):
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            return not connection.execute(IS_EMPTY).fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError):
        return True  # something else, or damaged


def lacks_locks(path: Path) -> str:
    """Tell why the file system has no locks, "" if it has: SQLite would report another process's lock instead."""
    try:
        import fcntl

        # A separate file: closing the database's file would drop this process's locks on it.
        with tempfile.TemporaryFile(dir=path.parent) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except ImportError:
        pass
    except OSError as error:  # SQLite reports any other error
        if error.errno in NO_LOCKS:
            return str(error.strerror)
    return ""


class Busy(InputError):
    """Another process is writing to the database."""


class RunDatabase:
    """An open database. A writer holds the lock until `close` or the end of its process."""

    def __init__(self, path: Path, writes: bool, new: bool = False) -> None:
        """Open the database. Raises InputError if it is not a run's, cannot be opened, or has another writer."""
        self.path, self._writes, self._opened = path, writes, False
        self._committed = time.monotonic()
        self.skipped = 0  # changed rows that `rows` left out
        unlocked = lacks_locks(path)
        if writes and unlocked:
            raise InputError(
                f"{path}: the file system has no locks ({unlocked}), which a database needs; give --run_database PATH"
                " on another disk"
            )
        # Even a reader may have to roll back a transaction that a kill has interrupted. Not without locks, where it
        # could be another machine's; no run of this machine writes there.
        mode = "rwc" if new else "ro&nolock=1" if unlocked else "rw"
        uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
        with self._plain_errors():
            self._connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=PATIENCE, check_same_thread=False
            )
            # So that a damaged row can be read too.
            self._connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            try:
                self._open(new)
            except BaseException:
                self._connection.close()
                raise
        self._file, self._opened = path.stat(), True

    def _open(self, new: bool) -> None:
        """Lock the database, or keep a reader from writing; create the tables, which the first `commit` keeps."""
        empty = self._value(IS_EMPTY)
        if self._writes:
            self._lock()
        else:
            self._execute("PRAGMA query_only = ON")
        if new and not empty:
            raise InputError(f"{self.path}: holds an earlier run; give another path, --resume or --overwrite")
        for table, (keys, columns) in TABLES.items() if new else ():
            names = columns.split()
            listed = ", ".join([*names, "key", "hash", f"PRIMARY KEY ({', '.join(names[:keys])})"])
            self._execute(f"CREATE TABLE {table} ({listed})")
        if new:
            self._execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._execute(f"PRAGMA user_version = {VERSION}")
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise InputError(f"{self.path}: is not a run's database; give another --gradcam_output_dir")
        if (version := self._value("PRAGMA user_version")) != VERSION:
            raise InputError(
                f"{self.path}: was written by {'a newer' if version > VERSION else 'another'} version (schema"
                f" {version}, this one knows {VERSION}); use that version, or another --gradcam_output_dir"
            )

    def _lock(self) -> None:
        """Become the writer. Fail at once if there is another writer; wait for readers."""
        self._value("PRAGMA journal_mode = DELETE")  # a WAL needs memory shared between processes
        self._execute("PRAGMA synchronous = FULL")  # commits survive a crash of the machine
        self._execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise Busy(f"{self.path}: another process is writing there; wait for it or end it") from error
        self._execute(f"PRAGMA busy_timeout = {1000 * PATIENCE}")

    def _execute(self, query: str, *values: object) -> sqlite3.Cursor:
        with self._plain_errors():
            return self._connection.execute(query, values)

    def _value(self, query: str, *values: object) -> Any:
        return self._execute(query, *values).fetchone()[0]

    def _for_each(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        with self._plain_errors():
            self._connection.executemany(query, rows)

    def put(self, table: str, rows: Iterable[Sequence[object]], key: str = "") -> None:
        """Insert rows, or replace those with the same primary key. `commit` writes them to disk."""
        stored = (tuple(map(_stored, (*row, key))) for row in rows)
        self._insert(table, ((*row, digest(row)) for row in stored))

    def _insert(self, table: str, whole: Iterable[DatabaseRow]) -> None:
        marks = ", ".join("?" * (len(TABLES[table][1].split()) + 2))
        self._for_each(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", whole)

    def end_batch(self) -> None:
        """Commit, unless the last commit was a moment ago: each waits for the disk, and batches may be quick."""
        if time.monotonic() - self._committed > PAUSE:
            self.commit()

    def commit(self) -> None:
        """Write all rows to disk. Raises RunError if the disk is full or the file is gone."""
        self._execute("COMMIT")
        self._execute("BEGIN IMMEDIATE")
        self._committed = time.monotonic()
        if not (self.path.exists() and os.path.samestat(self.path.stat(), self._file)):
            raise RunError(self._removed())

    def rows(self, table: str, where: str = "", *values: object) -> Iterator[DatabaseRow]:
        """Yield the unchanged rows, in the order of the primary key; the last value is the key of the inputs."""
        for row in self._unchanged(table, where, *values):
            text = table not in BINARY and bytes in map(type, row)
            yield tuple(map(_text, row[:-1])) if text else row[:-1]

    def first_row(self, table: str, where: str = "", *values: object) -> DatabaseRow | None:
        """Return the first row that `rows` would yield, or None."""
        return next(iter(list(self.rows(table, where, *values))), None)

    def own(self, column: str) -> Any:
        """Return a value of the run's own row; `metrics` is "" until the run has finished. Raises InputError."""
        row = self.first_row("run")
        if row is None:
            raise InputError(
                f"{self.path}: its table run is empty or was changed; --overwrite renames that run and starts again"
            )
        return row[[*TABLES["run"][1].split(), "key"].index(column)]

    def _unchanged(self, table: str, where: str = "", *values: object) -> Iterator[DatabaseRow]:
        for _, row, unchanged in self._all(table, where, *values):
            if unchanged:
                yield row
            self.skipped += not unchanged

    def _all(self, table: str, where: str = "", *values: object) -> Iterator[tuple[int, DatabaseRow, bool]]:
        """Yield each row's number, the row, and whether nobody has changed it."""
        order = ", ".join(TABLES[table][1].split()[: TABLES[table][0]])
        with self._plain_errors():
            for row in self._connection.execute(f"SELECT rowid, * FROM {table} {where} ORDER BY {order}", values):
                yield row[0], row[1:], row[-1] == digest(row[1:-1])

    def forget(self, table: str, dataset: str, indices: Iterable[int]) -> None:
        """Delete the rows of some frames."""
        given = ((dataset, index) for index in indices)
        self._for_each(f"DELETE FROM {table} WHERE dataset = ? AND idx = ?", given)

    def forget_changed(self) -> dict[str, int]:
        """Delete rows that were edited since the run wrote them; return their number per table.

        Raises InputError if pages of the file are damaged or cut off.
        """
        if (found := self._value("PRAGMA integrity_check(1)")) != "ok":
            raise InputError(self._damaged(found))
        deleted = {}
        for table in TABLES:
            changed = [[number] for number, _, unchanged in self._all(table) if not unchanged]
            self._for_each(f"DELETE FROM {table} WHERE rowid = ?", changed)
            deleted[table] = len(changed)
        return {table: count for table, count in deleted.items() if count}

    def count(self, table: str, where: str = "", *values: object) -> int:
        return int(self._value(f"SELECT count(*) FROM {table} {where}", *values))

    def hash_of(self, table: str, dataset: str) -> str:
        hashes = self._execute(f"SELECT hash FROM {table} WHERE dataset = ? ORDER BY idx", dataset)
        return digest([value for (value,) in hashes])

    def absorb(self, other: RunDatabase) -> None:
        """Copy the unchanged rows of another database, except its row of the table `run`, and commit."""
        for table in TABLES.keys() - {"run"}:
            rows = other._unchanged(table)
            while some := list(itertools.islice(rows, 1000)):
                self._insert(table, some)
                self.end_batch()  # so that readers get their turn
        self.commit()

    def clear(self) -> None:
        """Delete every row, once another database has them."""
        for table in TABLES:
            self._execute(f"DELETE FROM {table}")
        self.commit()

    def close(self) -> None:
        """Commit and release the lock."""
        try:
            if self._writes and self._connection.in_transaction:
                self._execute("COMMIT")
        finally:
            self._connection.close()

    def __enter__(self) -> RunDatabase:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: a damaged schema
            text = str(error)
            if self._opened and self._writes and not self.path.exists():
                raise RunError(self._removed()) from error
            if "malformed" in text or "not a database" in text:
                raise InputError(self._damaged(text)) from error
            if not (self._opened and self._writes):
                raise InputError(f"{self.path}: cannot be {'written' if self._writes else 'read'} ({text})") from error
            raise RunError(
                f"{self.path}: {text}; earlier batches are saved: solve this (full disk, quota, lock), then continue"
                " with --resume"
            ) from error

    def _damaged(self, why: object) -> str:
        return f"{self.path}: is damaged ({' '.join(str(why).split())}); --overwrite renames that run and starts again"

    def _removed(self) -> str:
        return f"{self.path}: was removed during the run, so outputs are missing; start again"


def digest(row: Sequence[object]) -> str:
    """Hash a row's values as SQLite returns them."""
    return hashlib.blake2b(repr(tuple(row)).encode(), digest_size=12).hexdigest()


def _stored(value: object) -> object:
    """Convert a value for SQLite: a string with a lone surrogate, as in some file names, becomes bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return int(value) if isinstance(value, bool) else value


def _text(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # a run writes no such bytes
        return value.decode("utf-8", "backslashreplace")
