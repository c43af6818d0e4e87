"""A store whose operations are timed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from server.exports.model import CellRecord
from server.exports.store import Store
from server.refusals import Refused

T = TypeVar("T")

# Called after each operation with its name, its outcome, and its duration in seconds.
Measure = Callable[[str, str, float], None]


class MeasuredStore:
    """A store that passes each operation to another store, and measures its outcome and duration.

    The outcome is `ok`, `conflict` if somebody else has written the record first, `cancelled`, `error`, or the name of
    the refusal.
    """

    def __init__(self, store: Store, measure: Measure) -> None:
        self._store = store
        self._measure = measure

    async def read(self, cell: str) -> CellRecord:
        return await self._timed("read", self._store.read(cell))

    async def replace(self, record: CellRecord) -> bool:
        return await self._timed("replace", self._store.replace(record))

    async def underway(self) -> Sequence[CellRecord]:
        return await self._timed("underway", self._store.underway())

    def changes(self, cell: str) -> AbstractContextManager[asyncio.Event]:
        return self._store.changes(cell)

    def queue_changes(self) -> AbstractContextManager[asyncio.Event]:
        return self._store.queue_changes()

    async def check(self) -> None:
        await self._timed("check", self._store.check())

    async def doubt(self) -> int | None:
        return await self._timed("doubt", self._store.doubt())

    async def settle(self, doubt: int) -> None:
        await self._timed("settle", self._store.settle(doubt))

    async def close(self) -> None:
        await self._store.close()

    async def _timed(self, operation: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        outcome = "error"
        try:
            result = await work
            outcome = "conflict" if result is False else "ok"
            return result
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Refused as refused:
            outcome = refused.refusal.name.lower()
            raise
        finally:
            self._measure(operation, outcome, time.perf_counter() - began)
