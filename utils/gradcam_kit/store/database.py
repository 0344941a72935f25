"""`run.sqlite`: everything that a run has found, safe from kills. The other files of its folder are made from it.

One transaction for each batch, or some quick ones, by one writer at a time. Each row ends with the key of what it
depends on and a hash of the rest, so that a stale or an edited row is found.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..base.errors import InputError, RunError

FILE = "run.sqlite"
ELSEWHERE = "run_database.txt"  # holds the path of a database that lies elsewhere (--run_database)
APPLICATION_ID, VERSION = 0x67636D31, 1
PAUSE = 0.5  # seconds between two commits, at least: 18 ms each on a busy disk
PATIENCE = 60  # seconds that a writer and a reader wait for each other; neither takes longer than a batch
# Table → its columns, of which so many first ones name a row.
TABLES = {
    "run": (1, "id manifest metrics exported"),
    "frame": (2, "dataset idx path forgery video label logit_real logit_fake prob_fake reason stamp"),
    "sample": (2, "dataset idx facts files lost"),
    "map": (3, "dataset idx layer rows columns span_rows span_columns raw signed"),
    "feature": (2, "dataset idx vector"),
    "calibration": (1, "name choice"),
    "measurement": (2, "dataset name content"),
}
BLOBS = ("raw", "signed", "vector", "content")  # any other bytes are a string that UTF-8 does not have
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
Row = tuple[Any, ...]


def database_of(folder: Path) -> Path:
    """Where the database of a run's folder lies, whether it is there or not."""
    pointer = folder / ELSEWHERE
    return Path(pointer.read_text(encoding="utf-8").rstrip("\n")) if pointer.is_file() else folder / FILE


def is_run(path: Path) -> bool:
    """Whether a file begins as a database of a run does, be the rest of it whole or not."""
    with path.open("rb") as file:
        head = file.read(100)
    return head[:16] == b"SQLite format 3\0" and int.from_bytes(head[68:72], "big") == APPLICATION_ID


def has_begun(path: Path) -> bool:
    """Whether a database is there: what a kill has left of the first transaction is none."""
    if not (path.is_file() and path.stat().st_size):
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except (sqlite3.Error, UnicodeDecodeError):
        return True  # whatever it is


class Busy(InputError):
    """Another process is at work there."""


class RunDatabase:
    """An open database. A writer holds its lock until `close`, or until the process ends, however it ends."""

    def __init__(self, path: Path, writes: bool, new: bool = False) -> None:
        """Raises InputError for what is no database of a run, cannot be opened or written, or has another writer."""
        self.path, self._writes = path, writes
        self._committed = time.monotonic()
        self.skipped = 0  # rows that `rows` found changed
        with self._told(InputError):
            mode = "rwc" if new else "rw" if writes else "ro"
            self._connection = self._connected(mode)
            try:
                if not writes:
                    self._connection = self._recovered(self._connection)
                else:
                    self._lock(new)
                self._check()
            except BaseException:
                self._connection.close()
                raise
        self._file = path.stat()

    def _connected(self, mode: str) -> sqlite3.Connection:
        uri = f"file:{quote(os.fsencode(self.path.absolute()))}?mode={mode}"
        waits = PATIENCE if mode == "ro" else 0  # for another writer nobody waits
        opened = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=waits, check_same_thread=False)
        opened.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")  # of a damaged row, too
        return opened

    def _recovered(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """A reader; where a kill has left half a transaction, a writer takes it back first."""
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error) and "unable to open" not in str(error):
                raise
            connection.close()
            writer = self._connected("rw")
            writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
            writer.close()
            connection = self._connected("ro")
        return connection

    def _lock(self, new: bool) -> None:
        """Become the writer, and of a new database make the tables, which the first `commit` keeps."""
        connection = self._connection
        connection.execute("PRAGMA journal_mode = DELETE")  # a WAL needs memory that processes share
        connection.execute("PRAGMA synchronous = FULL")  # what was committed outlives a crash of the machine, too
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise Busy(self._why_locked()) from error
        connection.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE}")  # from here on for readers
        if new and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for name, (keys, columns) in TABLES.items():
                names = columns.split()
                listed = ", ".join([*names, "key", "hash", f"PRIMARY KEY ({', '.join(names[:keys])})"])
                connection.execute(f"CREATE TABLE {name} ({listed})")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif new:
            raise InputError(f"{self.path}: holds an earlier run; give another place, --resume or --overwrite")

    def _why_locked(self) -> str:
        try:
            import fcntl

            with self.path.open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except ImportError:
            pass
        except OSError as error:
            if error.errno in NO_LOCKS:
                return (
                    f"{self.path}: the file system has no locks ({error.strerror}), which a database needs; give"
                    " --run_database PATH on a disk that has them"
                )
        return f"{self.path}: another process is at work there; wait for it or end it"

    def _check(self) -> None:
        """Raises InputError where this is no database of a run, or one of a newer version."""
        pragma = [
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        ]
        if pragma[0] != APPLICATION_ID:
            raise InputError(f"{self.path}: is no database of a run; give another --gradcam_output_dir")
        if pragma[1] != VERSION:
            raise InputError(
                f"{self.path}: was written by {'a newer' if pragma[1] > VERSION else 'another'} version (schema"
                f" {pragma[1]}, this one knows {VERSION}); use that version, or another --gradcam_output_dir"
            )

    def check_whole(self) -> None:
        """Raises InputError for a file of which pages are damaged or cut off."""
        with self._told(InputError):
            found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise InputError(self._damaged(found))

    def _damaged(self, why: object) -> str:
        return f"{self.path}: is damaged ({' '.join(str(why).split())}); --overwrite renames that run and begins again"

    def put(self, table: str, rows: Iterable[Sequence[object]], key: str = "") -> None:
        """Add these rows, or replace those of the same names; they are on disk after `commit`."""
        marks = ", ".join("?" * (len(TABLES[table][1].split()) + 2))
        whole = ((*row, digest(row)) for row in (tuple(map(_stored, (*row, key))) for row in rows))
        with self._told(RunError):
            self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", whole)

    def end_batch(self) -> None:
        """`commit`, unless the last one was a moment ago: each waits for the disk, and batches may be quick."""
        if time.monotonic() - self._committed > PAUSE:
            self.commit()

    def commit(self) -> None:
        """Keep what was put, whatever happens. Raises RunError for a full disk, or where the file is gone."""
        with self._told(RunError):
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")
        self._committed = time.monotonic()
        if not (self.path.exists() and os.path.samestat(self.path.stat(), self._file)):
            raise RunError(self._removed())

    def _removed(self) -> str:
        return f"{self.path}: was removed while the run was at work, so outputs are missing; begin again"

    def rows(self, table: str, where: str = "", *values: object) -> Iterator[Row]:
        """The whole rows, with their key at the end, in the order of their names. A changed one counts as none."""
        for row in self._rows(table, where, values):
            if row[-1] == digest(row[:-1]):
                yield _read(table, row)
            else:
                self.skipped += 1

    def one(self, table: str, where: str = "", *values: object) -> Row | None:
        """The first of such rows."""
        return next(iter(list(self.rows(table, where, *values))), None)

    def _rows(self, table: str, where: str = "", values: Sequence[object] = ()) -> Iterator[Row]:
        order = ", ".join(map(str, range(1, TABLES[table][0] + 1)))
        with self._told(InputError):
            yield from self._connection.execute(f"SELECT * FROM {table} {where} ORDER BY {order}", list(values))

    def forget(self, table: str, dataset: str, indices: Iterable[int]) -> None:
        """Take rows out."""
        with self._told(RunError):
            given = ((dataset, index) for index in indices)
            self._connection.executemany(f"DELETE FROM {table} WHERE dataset = ? AND idx = ?", given)

    def changed(self) -> dict[str, int]:
        """Table → rows that are not as the run wrote them; a writer takes them out."""
        found = {}
        for table, (keys, columns) in TABLES.items():
            names = [row[:keys] for row in self._rows(table) if row[-1] != digest(row[:-1])]
            if names:
                found[table] = len(names)
                which = " AND ".join(f"{name} IS ?" for name in columns.split()[:keys])
                if self._writes:
                    self._connection.executemany(f"DELETE FROM {table} WHERE {which}", names)
        return found

    def count(self, table: str, where: str = "", *values: object) -> int:
        """How many rows there are."""
        with self._told(InputError):
            return int(self._connection.execute(f"SELECT count(*) FROM {table} {where}", values).fetchone()[0])

    def hash_of(self, table: str, dataset: str) -> str:
        """Of all rows of a dataset."""
        with self._told(InputError):
            found = self._connection.execute(f"SELECT hash FROM {table} WHERE dataset = ? ORDER BY idx", [dataset])
            return digest(tuple(value for (value,) in found))

    def absorb(self, other: RunDatabase) -> None:
        """Take over the whole rows of another database, but for its own one."""
        for table in TABLES:
            for row in other._rows(table) if table != "run" else ():
                if row[-1] == digest(row[:-1]):
                    self.put(table, [row[:-2]], row[-2])

    def clear(self) -> None:
        """Take out every row: another database has them."""
        with self._told(RunError):
            for table in TABLES:
                self._connection.execute(f"DELETE FROM {table}")
        self.commit()

    def close(self) -> None:
        """Keep what was put, and let others in."""
        try:
            if self._writes and self._connection.in_transaction:
                with self._told(RunError):
                    self._connection.execute("COMMIT")
        finally:
            self._connection.close()

    def __enter__(self) -> RunDatabase:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def _told(self, kind: type[InputError | RunError]) -> Iterator[None]:
        """SQLite's errors as one line that says what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter of a damaged schema
            text = str(error)
            if kind is RunError and not self.path.exists():
                raise RunError(self._removed()) from error
            if "malformed" in text or "not a database" in text:
                raise InputError(self._damaged(text)) from error
            if kind is InputError:
                raise InputError(f"{self.path}: cannot be {'written' if self._writes else 'read'} ({text})") from error
            raise RunError(
                f"{self.path}: {text}; what was written until the last batch is kept: remedy that (room on the disk, a"
                " quota, a lock) and go on with --resume"
            ) from error


def digest(row: Sequence[object]) -> str:
    """The hash of a row, of the values as SQLite gives them back."""
    return hashlib.blake2b(repr(tuple(row)).encode(), digest_size=12).hexdigest()


def _stored(value: object) -> object:
    """As SQLite holds it: a string with a lone surrogate, as file names may have, is held as bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return int(value) if isinstance(value, bool) else value


def _read(table: str, row: Row) -> Row:
    if bytes not in map(type, row):
        return row[:-1]
    names = (*TABLES[table][1].split(), "key")
    return tuple(
        _text(value) if isinstance(value, bytes) and name not in BLOBS else value
        for name, value in zip(names, row[:-1], strict=True)
    )


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # nothing that a run writes
        return value.decode("utf-8", "backslashreplace")
