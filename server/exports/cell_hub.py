"""The hub of a watched cell: it reads the cell's record once after each change, for all subscribers of the cell."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from server.exports.model import CellRecord
from server.exports.repository import Repository
from server.exports.store import Store
from server.refusals import Refusal, Refused

# How many subscribers of a cell are woken in a row, before other tasks of the event loop run.
_WOKEN_AT_A_TIME = 50

_log = logging.getLogger(__name__)


class ReadSlots:
    """Slots for reads of the store, so that many watched cells don't starve other calls."""

    def __init__(self, *, count: int, patience_seconds: float) -> None:
        self._free = asyncio.Semaphore(count)
        self._patience_seconds = patience_seconds

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot while the context is open. Raise `Refused` with STORE_UNAVAILABLE if no slot is free in time."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise Refused(Refusal.STORE_UNAVAILABLE, note="too many reads wait for a slow store") from error
        try:
            yield
        finally:
            self._free.release()


class CellHub:
    """The newest record of one cell, for all its subscribers. The hub's own task reads it again after each change."""

    def __init__(
        self,
        cell: str,
        store: Store,
        repository: Repository,
        slots: ReadSlots,
        on_unavailable: Callable[["CellHub"], None],
    ) -> None:
        self.newest = CellRecord(cell=cell)
        self.subscribers = 0
        self._cell = cell
        self._repository = repository
        self._slots = slots
        self._on_unavailable = on_unavailable
        self._refused: Refused | None = None
        # When the latest complete read of the store began, in seconds of `time.monotonic`.
        self._refreshed_at = float("-inf")
        # Set after each read of the store, and then replaced by a new event.
        self._refreshed = asyncio.Event()
        self._waiters: set[asyncio.Future[bool]] = set()
        self._stack = ExitStack()
        self._stale = self._stack.enter_context(store.changes(cell))
        self._stack.callback(asyncio.create_task(self._keep_fresh()).cancel)

    def close(self) -> None:
        self._stack.close()

    def request_refresh(self) -> None:
        self._stale.set()

    async def refresh(self, *, since: float) -> CellRecord:
        """Return the record from a read that began at `since` (`time.monotonic`) or later."""
        while self._refreshed_at < since:
            refreshed = self._refreshed
            self._stale.set()
            await refreshed.wait()
        if self._refused is not None:
            raise Refused(self._refused.refusal, note=self._refused.note)
        return self.newest

    async def wait_for_change(self, seconds: float) -> bool:
        """Return whether subscribers are woken within `seconds`: the record has changed, or the server shuts down."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiter, False)
        self._waiters.add(waiter)
        try:
            return bool(await waiter)
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    async def wake_subscribers(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for number, waiter in enumerate(waiters):
            _resolve(waiter, True)
            if number % _WOKEN_AT_A_TIME == 0:
                await asyncio.sleep(0)

    async def _keep_fresh(self) -> None:
        while True:
            began, found = await self._read()
            # Set both after the read: while it ran, the result of the previous read counted.
            self._refreshed_at, self._refused = began, found if isinstance(found, Refused) else None
            refreshed, self._refreshed = self._refreshed, asyncio.Event()
            refreshed.set()
            if isinstance(found, Refused):
                self._on_unavailable(self)
            elif found.revision > self.newest.revision:
                self.newest = found
                await self.wake_subscribers()
            await self._stale.wait()

    async def _read(self) -> tuple[float, CellRecord | Refused]:
        """Read the record from the store. Return the start time of the read, and the record or the store's refusal."""
        began = None
        try:
            async with self._slots.one():
                self._stale.clear()
                began = time.monotonic()
                return began, await self._repository.read(self._cell)
        except Refused as refused:
            return began or time.monotonic(), refused
        except Exception:
            # The hub must answer: otherwise its subscribers would wait for ever.
            _log.exception("unexpected error in the read of a watched cell", extra={"cell": self._cell})
            return began or time.monotonic(), Refused(Refusal.UNEXPECTED)


def _resolve(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)
