"""Who watches which cell: the newest record, for as many as want it.

However many watch one cell, the store is read once after each change: for all of them. Nothing queues up: a watch that
is slow finds the newest record when it looks again.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from server.exports.model import CellRecord
from server.exports.repository import Repository
from server.exports.turns import Turns
from server.refusals import Refusal, Refused

# How many watches are woken before others have their turn.
_WOKEN_AT_A_TIME = 50
# How many cells are read at a time, so that other calls to the store have their share.
_READ_AT_A_TIME = 8
# As long as any other call may take.
_PATIENCE_SECONDS = 10.0
# How often a store that was away is asked whether it is back.
_RECOVERY_SECONDS = 0.5
# What the store said so long ago need not be asked again, only to say that nothing has changed.
_FRESH_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchUpdate:
    """The newest record, and whether it is another than the last."""

    record: CellRecord
    changed: bool


class Watches:
    """Every method raises `Refused`.

    Args:
        keepalive_seconds: how long at the most nothing is heard of a cell that doesn't change.
        patience_seconds: how long a cell may wait for its turn to be read.
    """

    def __init__(
        self, records: Repository, *, keepalive_seconds: float, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self._records = records
        self._keepalive_seconds = keepalive_seconds
        self._turns = Turns(at_a_time=_READ_AT_A_TIME, patience_seconds=patience_seconds)
        self._topics: dict[str, _CellHub] = {}
        # Those whose store doesn't answer.
        self._blind: set[_CellHub] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False

    async def close(self) -> None:
        """End every watch with SERVER_SHUTDOWN."""
        self._closing = True
        for topic in list(self._topics.values()):
            await topic.wake()

    async def watch(self, cell: str, after_revision: int, *, until_ready: bool) -> AsyncGenerator[WatchUpdate, None]:
        """The record at once, then each newer one; now and then that it is unchanged, which the store has just said.

        Args:
            after_revision: the one last seen, or 0.
            until_ready: whether to end when no export is under way.

        Raises:
            Refused: REVISION_UNKNOWN, SERVER_SHUTDOWN; what the store raises, if it can't be asked at the beginning, or
                to say that nothing has changed.
        """
        topic = self._join(cell)
        try:
            record = await topic.look(time.monotonic())
            if not 0 <= after_revision <= record.revision:
                raise Refused(Refusal.REVISION_UNKNOWN)
            seen = after_revision
            while True:
                yield WatchUpdate(record, changed=record.revision > seen)
                if until_ready and record.export is None:
                    return
                seen = record.revision
                record = topic.newest if topic.newest.revision > seen else await self._next(topic)
        finally:
            self._leave(cell, topic)

    async def _next(self, topic: "_CellHub") -> CellRecord:
        """The next record, or the same if there is none for too long."""
        if self._closing:
            raise Refused(Refusal.SERVER_SHUTDOWN)
        # Those who began together need not be told together.
        patience = self._keepalive_seconds * random.uniform(0.8, 1.0)  # noqa: S311 - guards nothing
        changed = await topic.wait(patience)
        if self._closing:
            raise Refused(Refusal.SERVER_SHUTDOWN)
        return topic.newest if changed else await topic.look(time.monotonic() - _FRESH_SECONDS)

    def _join(self, cell: str) -> "_CellHub":
        topic = self._topics.get(cell)
        if topic is None:
            topic = self._topics[cell] = _CellHub(cell, self._records, self._turns, self._on_blind)
        topic.users += 1
        return topic

    def _leave(self, cell: str, topic: "_CellHub") -> None:
        topic.users -= 1
        if not topic.users:
            del self._topics[cell]
            self._blind.discard(topic)
            topic.close()

    def _on_blind(self, topic: "_CellHub") -> None:
        self._blind.add(topic)
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Once the store is back, all who wait for it look again."""
        while self._blind:
            await asyncio.sleep(_RECOVERY_SECONDS)
            try:
                await self._records.check()
                in_doubt = await self._records.doubt()
            except Refused:
                continue
            except Exception:
                # Whatever it was: those who wait would wait for ever.
                _log.exception("unexpected error")
                continue
            if in_doubt is None:
                blind, self._blind = self._blind, set()
                for topic in blind:
                    topic.look_again()
        self._recovery = None


class _CellHub:
    """The newest record of one cell, for all who watch it."""

    def __init__(self, cell: str, records: Repository, turns: Turns, on_blind: Callable[["_CellHub"], None]) -> None:
        self.newest = CellRecord(cell=cell)
        self.users = 0
        self._cell = cell
        self._records = records
        self._turns = turns
        self._on_blind = on_blind
        self._refused: Refused | None = None
        # When the last look began, on a clock that does not jump.
        self._looked_at = float("-inf")
        self._looked = asyncio.Event()
        self._waiting: set[asyncio.Future[bool]] = set()
        self._stack = ExitStack()
        self._again = self._stack.enter_context(records.changes(cell))
        self._stack.callback(asyncio.create_task(self._keep_looking()).cancel)

    def close(self) -> None:
        self._stack.close()

    def look_again(self) -> None:
        self._again.set()

    async def look(self, since: float) -> CellRecord:
        """The newest record, as the store had it at that time of `time.monotonic` or later."""
        while self._looked_at < since:
            looked = self._looked
            self._again.set()
            await looked.wait()
        if self._refused is not None:
            raise Refused(self._refused.refusal, note=self._refused.note)
        return self.newest

    async def wait(self, seconds: float) -> bool:
        """Whether there is something new within that time."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiter, False)
        self._waiting.add(waiter)
        try:
            return bool(await waiter)
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    async def wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for number, waiter in enumerate(waiting):
            _resolve(waiter, True)
            if number % _WOKEN_AT_A_TIME == 0:
                await asyncio.sleep(0)

    async def _keep_looking(self) -> None:
        """Look at each change."""
        while True:
            began, found = await self._read()
            # Both at once, and only now: until then the last look is the one that counts.
            self._looked_at, self._refused = began, found if isinstance(found, Refused) else None
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            if isinstance(found, Refused):
                self._on_blind(self)
            elif found.revision > self.newest.revision:
                self.newest = found
                await self.wake()
            await self._again.wait()

    async def _read(self) -> tuple[float, CellRecord | Refused]:
        """The record, and as of when it is known."""
        began = None
        try:
            async with self._turns.one():
                self._again.clear()
                began = time.monotonic()
                return began, await self._records.read(self._cell)
        except Refused as refused:
            return began or time.monotonic(), refused
        except Exception:
            # Whatever it was: who watches must not wait for ever.
            _log.exception("unexpected error", extra={"cell": self._cell})
            return began or time.monotonic(), Refused(Refusal.UNEXPECTED)


def _resolve(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)
