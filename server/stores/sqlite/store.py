"""The embedded store: one SQLite file, owned by one server.

All SQL statements run on one separate thread, so that the event loop never waits for the disk. No other program may
write to the file, so recently used records are read from memory. The memory is updated only after a write is durable.
"""

import asyncio
import functools
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ParamSpec, TypeVar

from server.exports.model import CellRecord, Phase
from server.exports.store import StoreError
from server.refusals import Refusal, Refused
from server.stores.changes import Changes
from server.stores.sqlite import file, rows

_P = ParamSpec("_P")
_T = TypeVar("_T")

_REMEMBERED_CELLS = 20_000
# After these errors nothing was written, so the records in memory are still those of the file.
_NOT_WRITTEN = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


class SqliteStore:
    """The port `Store` on one SQLite file. Open it with `SqliteStore.open`. This store is never in doubt."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, floor: int, lock: int, executor: ThreadPoolExecutor
    ) -> None:
        self._path = path
        self._connection = connection
        self._floor = floor
        self._lock = lock
        self._executor = executor
        self._identity = file.identity(path)
        self._foreign_writes: int | None = None
        self._trusted = False
        self._memory: OrderedDict[str, CellRecord] = OrderedDict()
        self._underway: dict[str, CellRecord] = {}
        self._writes: set[asyncio.Task[bool]] = set()
        self._changes = Changes()

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open the file, or create it.

        Raises:
            StoreError: if another server owns the file, or the file can't be used.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        loop = asyncio.get_running_loop()
        try:
            lock, connection = await loop.run_in_executor(executor, file.open_file, path)
            floor = await loop.run_in_executor(executor, file.floor, connection)
            store = cls(path, connection, floor, lock, executor)
            await store.check()
        except (OSError, sqlite3.Error, Refused) as error:
            executor.shutdown()
            raise StoreError(f"{path} can't be used as the store: {error}.") from error
        return store

    async def read(self, cell: str) -> CellRecord:
        self._require_trust()
        known = self._known(cell)
        if known is not None:
            return known
        return self._remember(await self._run(rows.select, self._connection, cell, self._floor))

    async def replace(self, record: CellRecord) -> bool:
        self._require_trust()
        # Shield the write: a written record must reach the memory even if the caller leaves.
        write = asyncio.ensure_future(self._replace(record))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def underway(self) -> Sequence[CellRecord]:
        self._require_trust()
        return sorted(self._underway.values(), key=_accepted)

    def changes(self, cell: str) -> AbstractContextManager[asyncio.Event]:
        return self._changes.of(cell)

    def queue_changes(self) -> AbstractContextManager[asyncio.Event]:
        return self._changes.of_queue()

    async def doubt(self) -> None:
        return None

    async def settle(self, doubt: int) -> None:
        return

    async def check(self) -> None:
        try:
            if self._foreign_writes is None:
                self._foreign_writes = await self._run(file.foreign_writes, self._connection)
            await self._run(file.check, self._connection, self._path, self._identity, self._foreign_writes)
            if not self._trusted:
                await self._load_memory()
        except Refused:
            self._trusted = False
            raise

    async def close(self) -> None:
        await asyncio.gather(*self._writes, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._connection.close)
        self._executor.shutdown()
        os.close(self._lock)

    async def _replace(self, record: CellRecord) -> bool:
        written = await self._run(rows.replace_record, self._connection, record, self._floor)
        if written:
            self._remember(record)
            self._changes.notify(record.cell)
            if record.export is not None and record.export.phase is Phase.QUEUED:
                self._changes.notify_queue()
            return True
        known = self._known(record.cell)
        if known is not None and known.revision == record.revision - 1:
            # The cached record precedes the new record, but the file's record doesn't: another program wrote it.
            self._trusted = False
            raise Refused(Refusal.STORE_UNAVAILABLE, note=f"{self._path} was written to by another program")
        return False

    async def _load_memory(self) -> None:
        """Read the records with an export from the file into the memory, and forget all others."""
        underway = await self._run(rows.select_underway, self._connection)
        self._memory.clear()
        self._underway = {record.cell: record for record in underway}
        self._trusted = True

    def _require_trust(self) -> None:
        if not self._trusted:
            raise Refused(Refusal.STORE_UNAVAILABLE)

    def _known(self, cell: str) -> CellRecord | None:
        return self._underway.get(cell) or self._memory.get(cell)

    def _remember(self, record: CellRecord) -> CellRecord:
        """Put a record into the memory unless a newer one is there. Return the newer of both."""
        known = self._known(record.cell)
        if known is not None and known.revision >= record.revision:
            return known
        self._underway.pop(record.cell, None)
        self._memory.pop(record.cell, None)
        if record.export is not None:
            self._underway[record.cell] = record
            return record
        self._memory[record.cell] = record
        if len(self._memory) > _REMEMBERED_CELLS:
            self._memory.popitem(last=False)
        return record

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        call = functools.partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except ValueError as error:
            raise Refused(Refusal.DATA_DAMAGED) from error
        except sqlite3.Error as error:
            code = _primary_code(error)
            if code not in _NOT_WRITTEN:
                # The write may or may not have been made: don't trust the memory until it was loaded again.
                self._trusted = False
            raise Refused(_refusal(code)) from error


def _accepted(record: CellRecord) -> tuple[int, str]:
    return (record.export.accepted_at if record.export else 0, record.cell)


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _refusal(code: int) -> Refusal:
    if code == sqlite3.SQLITE_FULL:
        return Refusal.NO_SPACE
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Refusal.DATA_DAMAGED
    return Refusal.STORE_UNAVAILABLE
