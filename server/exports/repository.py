"""Reads a record, applies a transition, and writes the result only if nobody else has written the record meanwhile."""

from collections.abc import Callable
from dataclasses import replace

from server.exports.clock import Clock
from server.exports.model import CellRecord, Trust
from server.exports.store import Store
from server.refusals import Refusal, Refused

Transition = Callable[[CellRecord], CellRecord | None]


class Repository:
    """Reads and optimistic writes of the records in a store. Every method raises what the store raises.

    Args:
        clock: milliseconds since 1970.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._on_refused_write: Callable[[], None] = lambda: None

    def on_refused_write(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the store refuses a write: that write may have been meant to renew a lease."""
        self._on_refused_write = callback

    async def read(self, cell: str) -> CellRecord:
        """Return the record of a cell. Raise `Refused` with STORE_UNAVAILABLE while the store is in doubt about it."""
        record = await self._store.read(cell)
        if record.trust is Trust.DOUBTFUL:
            raise Refused(Refusal.STORE_UNAVAILABLE)
        return record

    async def write(self, record: CellRecord, following: CellRecord | None) -> CellRecord | None:
        """Write `following` as the successor of `record`, and return it with its new revision.

        Return None if `following` is None, or if somebody else has written the record since `record` was read.
        """
        if following is None:
            return None
        trust = Trust.SURE if record.trust is Trust.SURE else Trust.RESTORED
        following = replace(following, revision=record.revision + 1, updated_at=self._clock(), trust=trust)
        try:
            return following if await self._store.replace(following) else None
        except Refused:
            self._on_refused_write()
            raise

    async def apply(self, cell: str, transition: Transition) -> CellRecord:
        """Apply a transition to the cell's latest record and write the result. Return the cell's record after that.

        If somebody else writes the record meanwhile, read it and apply the transition again. Raise what the transition
        raises.
        """
        while True:
            record = await self.read(cell)
            following = transition(record)
            if following is None:
                return record
            written = await self.write(record, following)
            if written is not None:
                return written
