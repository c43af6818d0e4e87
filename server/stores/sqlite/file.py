"""The SQLite file: its creation, its schema, its lock against a second server, and its checks while in use."""

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.exports.store import StoreError
from server.refusals import Refusal, Refused

# Stands in the header of the SQLite file, and marks the file as a store of cellexport.
APPLICATION_ID = 0x43454C58

_MAGIC = b"SQLite format 3\x00"
_BUSY_SECONDS = 0.5

_VERSION_1 = """
CREATE TABLE cell (
    cell TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE export (
    cell TEXT PRIMARY KEY REFERENCES cell,
    export_id TEXT NOT NULL,
    name TEXT NOT NULL,
    request_key TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    phase TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    token_hash TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    percent INTEGER NOT NULL,
    work_done INTEGER NOT NULL,
    work_total INTEGER NOT NULL,
    entries_done INTEGER NOT NULL,
    entries_total INTEGER NOT NULL,
    bytes_done INTEGER NOT NULL,
    bytes_total INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcome (
    cell TEXT PRIMARY KEY REFERENCES cell,
    export_id TEXT NOT NULL,
    name TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    token_hash TEXT NOT NULL,
    result TEXT NOT NULL,
    reason TEXT,
    ended_at INTEGER NOT NULL
) WITHOUT ROWID;
"""
# The revisions of a cell begin at the floor. The floor of a new file is the time of its creation in milliseconds, so it
# is above all revisions of a file that the new one replaces.
_VERSION_2 = """
ALTER TABLE export ADD COLUMN stalled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE export ADD COLUMN cancelled INTEGER NOT NULL DEFAULT 0;
CREATE TABLE store (floor INTEGER NOT NULL);
INSERT INTO store (floor) VALUES (0);
"""
# Migration N leads from schema version N to N + 1. Existing migrations never change.
_MIGRATIONS = (_VERSION_1, _VERSION_2)
SCHEMA_VERSION = len(_MIGRATIONS)


class _Connection(sqlite3.Connection):
    """A connection that can read the first bytes of its file.

    It keeps a descriptor of its own open for that, and closes it last. A process loses SQLite's lock on a file when it
    closes any descriptor of that file. Without the lock, the next program that only reads the file would believe that
    it is the last user, and remove the write-ahead log with all writes in it.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            super().__init__(path, **options)
        except BaseException:
            os.close(self._file)
            raise

    def has_magic(self) -> bool:
        """Return whether the file still begins like a SQLite database."""
        return os.pread(self._file, len(_MAGIC), 0) == _MAGIC

    def close(self) -> None:
        super().close()
        os.close(self._file)


def open_file(path: Path) -> tuple[int, sqlite3.Connection]:
    """Lock the file for this server, create it if it is missing, and open it. Return the lock's descriptor as well.

    Raises:
        StoreError: if another server owns the file, or if this version can't use it.
        OSError, sqlite3.Error: if the file can't be read or written.
    """
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{path} belongs to a server that is running: one server owns the file. "
                "Stop that one, or let both share a Redis (CELLEXPORT_STORE)."
            ) from error
        if not path.exists():
            _create(path)
        return lock, _connect(path)
    except BaseException:
        os.close(lock)
        raise


def _create(path: Path) -> None:
    """Create the file under another name first: a crash must not leave an empty file that looks like a store."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _migrate(connection, 0)
        connection.execute("UPDATE store SET floor = ?", (time.time_ns() // 1_000_000,))
    finally:
        connection.close()
    # A removed database may have left a write-ahead log behind, which SQLite would apply to the new file.
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _connect(path: Path) -> sqlite3.Connection:
    _require_magic(path)
    _require_writable(path)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, factory=_Connection)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is the database of another program. Name another file in CELLEXPORT_STORE.")
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} was written by a newer version of cellexport. Start that version.")
    connection.execute("PRAGMA journal_mode = WAL")
    # An acknowledged write must survive a power cut.
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection, version)
    connection.execute("BEGIN IMMEDIATE").execute("COMMIT")
    return connection


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Migrate the schema in one transaction, so that a killed server leaves either the old schema or the new one."""
    if version < SCHEMA_VERSION:
        steps = "".join(_MIGRATIONS[version:])
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _require_magic(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StoreError(
                f"{path} is damaged: it is not a SQLite database. Restore it, or remove it to start empty."
            )


def _require_writable(path: Path) -> None:
    """Raise OSError for a file that can't be written. SQLite would open it for reading, and fail at the first write."""
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.close(os.open(path.with_name(path.name + ending), os.O_RDWR | os.O_CLOEXEC))


def identity(path: Path) -> tuple[int, int]:
    """Return the file's device and inode: they change if another file takes the file's place."""
    status = path.stat()
    return status.st_dev, status.st_ino


def floor(connection: sqlite3.Connection) -> int:
    """Return the file's floor, which is the revision of a cell that was never written."""
    (number,) = connection.execute("SELECT floor FROM store").fetchone()
    return int(number)


def foreign_writes(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another program writes to the file."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def check(connection: sqlite3.Connection, path: Path, opened: tuple[int, int], writes: int) -> None:
    """Check that the file is still the one that was opened, and that nobody else has written to it.

    Raises:
        Refused: STORE_UNAVAILABLE
    """
    try:
        whole = isinstance(connection, _Connection) and connection.has_magic()
        same = whole and identity(path) == opened and foreign_writes(connection) == writes
    except OSError:
        same = False
    if not same:
        raise Refused(
            Refusal.STORE_UNAVAILABLE,
            note=f"{path} was removed, replaced, damaged or written to by another program: restart the server",
        )
    connection.execute("SELECT count(*) FROM export").fetchone()
