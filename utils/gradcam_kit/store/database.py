"""`run.sqlite`: everything that a run has found, safe from kills. The other files of its folder are made from it.

One transaction for each batch, or some quick ones, by one writer at a time. Each row ends with the key of what it
depends on and a hash of the rest, so that a stale or an edited row is found.
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
BINARY = ("map", "feature", "measurement")  # elsewhere bytes are a string that UTF-8 does not have
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
IS_EMPTY = "SELECT count(*) = 0 FROM sqlite_master"
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
            return not connection.execute(IS_EMPTY).fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError):
        return True  # whatever it is


def check_locks(path: Path) -> None:
    """Raises InputError where the file system has no locks: SQLite would take that for another process's lock."""
    try:
        import fcntl

        # A file of its own: to close the database's would drop the locks that this process may have on it.
        with tempfile.TemporaryFile(dir=path.parent) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except ImportError:
        pass
    except OSError as error:  # of any other one SQLite tells
        if error.errno in NO_LOCKS:
            raise InputError(
                f"{path}: the file system has no locks ({error.strerror}), which a database needs; give"
                " --run_database PATH on a disk that has them"
            ) from error


class Busy(InputError):
    """Another process is at work there."""


class RunDatabase:
    """An open database. A writer holds its lock until `close`, or until the process ends, however it ends."""

    def __init__(self, path: Path, writes: bool, new: bool = False) -> None:
        """Raises InputError for what is no database of a run, cannot be opened or written, or has another writer."""
        self.path, self._writes = path, writes
        self._committed = time.monotonic()
        self.skipped = 0  # rows that `rows` found changed
        if writes:
            check_locks(path)
        with self._told(InputError):
            # A reader, too, may have to take back the half of a transaction that a kill has left.
            uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={'rwc' if new else 'rw'}"
            self._connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=PATIENCE, check_same_thread=False
            )
            # Of a damaged row, too.
            self._connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            try:
                empty = self._value(IS_EMPTY)
                if writes:
                    self._lock()
                else:
                    self._connection.execute("PRAGMA query_only = ON")
                if new:
                    self._make_tables(empty)
                self._check()
            except BaseException:
                self._connection.close()
                raise
        self._file = path.stat()

    def _value(self, query: str, *values: object) -> Any:
        return self._connection.execute(query, values).fetchone()[0]

    def _lock(self) -> None:
        """Become the writer. For another one nobody waits, for a reader both do."""
        self._value("PRAGMA journal_mode = DELETE")  # a WAL needs memory that processes share
        self._connection.execute("PRAGMA synchronous = FULL")  # what was committed outlives a crash of the machine
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise Busy(f"{self.path}: another process is at work there; wait for it or end it") from error
        self._connection.execute(f"PRAGMA busy_timeout = {1000 * PATIENCE}")

    def _make_tables(self, empty: bool) -> None:
        """The first `commit` keeps them."""
        if not empty:
            raise InputError(f"{self.path}: holds an earlier run; give another place, --resume or --overwrite")
        for table, (keys, columns) in TABLES.items():
            names = columns.split()
            listed = ", ".join([*names, "key", "hash", f"PRIMARY KEY ({', '.join(names[:keys])})"])
            self._connection.execute(f"CREATE TABLE {table} ({listed})")
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def _check(self) -> None:
        """Raises InputError where this is no database of a run, or one of a newer version."""
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise InputError(f"{self.path}: is no database of a run; give another --gradcam_output_dir")
        if (version := self._value("PRAGMA user_version")) != VERSION:
            raise InputError(
                f"{self.path}: was written by {'a newer' if version > VERSION else 'another'} version (schema"
                f" {version}, this one knows {VERSION}); use that version, or another --gradcam_output_dir"
            )

    def check_whole(self) -> None:
        """Raises InputError for a file of which pages are damaged or cut off."""
        with self._told(InputError):
            found = self._value("PRAGMA integrity_check(1)")
        if found != "ok":
            raise InputError(self._damaged(found))

    def _damaged(self, why: object) -> str:
        return f"{self.path}: is damaged ({' '.join(str(why).split())}); --overwrite renames that run and begins again"

    def put(self, table: str, rows: Iterable[Sequence[object]], key: str = "") -> None:
        """Add these rows, or replace those of the same names; they are on disk after `commit`."""
        stored = (tuple(map(_stored, (*row, key))) for row in rows)
        self._insert(table, ((*row, digest(row)) for row in stored))

    def _insert(self, table: str, whole: Iterable[Row]) -> None:
        marks = ", ".join("?" * (len(TABLES[table][1].split()) + 2))
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
        for *row, _ in self._whole(table, where, *values):
            yield tuple(map(_text, row)) if table not in BINARY and bytes in map(type, row) else tuple(row)

    def one(self, table: str, where: str = "", *values: object) -> Row | None:
        """The first of such rows."""
        return next(iter(list(self.rows(table, where, *values))), None)

    def _whole(self, table: str, where: str = "", *values: object) -> Iterator[Row]:
        for _, *row in self._all(table, where, *values):
            if row[-1] == digest(row[:-1]):
                yield tuple(row)
            else:
                self.skipped += 1

    def _all(self, table: str, where: str = "", *values: object) -> Iterator[Row]:
        """Each row behind its rowid."""
        order = ", ".join(TABLES[table][1].split()[: TABLES[table][0]])
        with self._told(InputError):
            yield from self._connection.execute(f"SELECT rowid, * FROM {table} {where} ORDER BY {order}", values)

    def forget(self, table: str, dataset: str, indices: Iterable[int]) -> None:
        """Take rows out."""
        with self._told(RunError):
            given = ((dataset, index) for index in indices)
            self._connection.executemany(f"DELETE FROM {table} WHERE dataset = ? AND idx = ?", given)

    def forget_changed(self) -> dict[str, int]:
        """Take out the rows that are not as the run wrote them; table → how many."""
        found = {}
        for table in TABLES:
            changed = [[row] for row, *of, its_hash in self._all(table) if its_hash != digest(of)]
            with self._told(RunError):
                self._connection.executemany(f"DELETE FROM {table} WHERE rowid = ?", changed)
            found[table] = len(changed)
        return {table: count for table, count in found.items() if count}

    def count(self, table: str, where: str = "", *values: object) -> int:
        """How many rows there are."""
        with self._told(InputError):
            return int(self._value(f"SELECT count(*) FROM {table} {where}", *values))

    def hash_of(self, table: str, dataset: str) -> str:
        """Of all rows of a dataset."""
        with self._told(InputError):
            found = self._connection.execute(f"SELECT hash FROM {table} WHERE dataset = ? ORDER BY idx", [dataset])
            return digest(tuple(value for (value,) in found))

    def absorb(self, other: RunDatabase) -> None:
        """Take over the whole rows of another database, but for its own one, and keep them."""
        for table in TABLES.keys() - {"run"}:
            rows = other._whole(table)
            while some := list(itertools.islice(rows, 1000)):
                self._insert(table, some)
                self.end_batch()  # lets readers in
        self.commit()

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


def _text(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # nothing that a run writes
        return value.decode("utf-8", "backslashreplace")
