"""Records, written step by step: from what was read to the next, only if nobody else has written meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from server.exports.clock import now_ms
from server.exports.model import CellRecord, Trust
from server.exports.store import Store
from server.refusals import Refusal, Refused

Step = Callable[[CellRecord], CellRecord | None]


class Repository:
    """A store, as the rules see it. Every method raises what the store raises."""

    def __init__(self, store: Store, clock: Callable[[], int] = now_ms) -> None:
        self._store = store
        self.clock = clock
        # How often the store refused a write: what was to be written may have been a sign of life.
        self.refused_writes = 0

    async def read(self, cell: str) -> CellRecord:
        """The record of a cell. Raises `Refused` with STORE_UNAVAILABLE, too, if it is doubtful."""
        record = await self._store.read(cell)
        if record.trust is Trust.DOUBTFUL:
            raise Refused(Refusal.STORE_UNAVAILABLE)
        return record

    async def read_though_doubtful(self, cell: str) -> CellRecord:
        """What is kept of a cell, for exporters, who may know better."""
        return await self._store.read(cell)

    async def underway(self) -> Sequence[CellRecord]:
        return await self._store.underway()

    async def check(self) -> None:
        await self._store.check()

    async def doubt(self) -> int | None:
        return await self._store.doubt()

    async def settle(self, doubt: int) -> None:
        await self._store.settle(doubt)

    def changes(self, topic: str) -> AbstractContextManager[asyncio.Event]:
        return self._store.changes(topic)

    async def write(self, record: CellRecord, following: CellRecord | None) -> CellRecord | None:
        """Write a record's successor; None if there is none, or somebody else was faster."""
        if following is None:
            return None
        trust = Trust.SURE if record.trust is Trust.SURE else Trust.RESTORED
        following = replace(following, revision=record.revision + 1, updated_at=self.clock(), trust=trust)
        try:
            return following if await self._store.replace(following) else None
        except Refused:
            self.refused_writes += 1
            raise

    async def step(self, cell: str, step: Step) -> CellRecord:
        """Take a step from whatever the record is, and return the record after it. Raises what the step raises."""
        while True:
            record = await self.read(cell)
            following = step(record)
            if following is None:
                return record
            written = await self.write(record, following)
            if written is not None:
                return written
