"""Ends exports that nobody speaks for: a lease that was not renewed in time, a queue that nobody serves.

Time here is what this server has itself watched, on a clock that does not jump: a restart, a store that was away, or
a pause of the whole process begins the count anew. So an exporter is never given up on for want of our own attention.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from server.errors import Refused
from server.model import CellRecord, Phase
from server.records import Records, now_ms
from server.registry import Registry

_TICK_SECONDS = 0.25
# A sleep that took longer than this was a pause of the whole process: reports that came meanwhile are still unread.
_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class LeaseWatch:
    """Looks at every export under way, several times a second.

    Args:
        lease_seconds: after how long without a report an export is interrupted.
        queue_seconds: after how long without an exporter it is.
    """

    def __init__(
        self,
        *,
        records: Records,
        registry: Registry,
        lease_seconds: float,
        queue_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._registry = registry
        self._lease_seconds = lease_seconds
        self._queue_seconds = queue_seconds
        self._monotonic = monotonic
        # Of each cell's export, as it was when first seen: its revision, and when it is over if that stays so.
        self._deadlines: dict[str, tuple[int, float]] = {}
        self._checked_at = monotonic()
        self._away = False
        self._refused_writes = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            asleep = self._monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            if self._monotonic() - asleep > _PAUSE_SECONDS:
                self._deadlines.clear()
            await self._look_again()

    async def _look_again(self) -> None:
        try:
            await self._check_store()
            await self.look()
            self._away = False
        except Refused as refused:
            self._deadlines.clear()
            if not self._away:
                _log.error("the store can't be used", extra={"reason": refused.refusal.name, "note": refused.note})
            self._away = True
        except Exception:
            # Whatever it was: a watch that has ended would leave every export in progress for ever.
            _log.exception("unexpected error")

    async def _check_store(self) -> None:
        now = self._monotonic()
        if self._away or now - self._checked_at >= self._lease_seconds / 3:
            self._checked_at = now
            await self._records.check()

    async def look(self) -> None:
        """Look once, and end what is over."""
        records = await self._records.underway()
        now = self._monotonic()
        if self._records.refused_writes != self._refused_writes:
            # Reports may have been among them.
            self._refused_writes = self._records.refused_writes
            self._deadlines.clear()
        self._deadlines = {record.cell: self._deadline(record, now) for record in records}
        for record in records:
            if self._deadlines[record.cell][1] <= now:
                # If this one can't be ended now, it has its turn again, and the others have theirs.
                self._deadlines[record.cell] = record.revision, now + self._lease_seconds
                await self._end(record)

    def _deadline(self, record: CellRecord, now: float) -> tuple[int, float]:
        known = self._deadlines.get(record.cell)
        if known is not None and known[0] == record.revision:
            return known
        return record.revision, now + self._seconds_left(record)

    def _seconds_left(self, record: CellRecord) -> float:
        export = record.export
        if export is None or export.phase is Phase.EXPIRING:
            return 0
        if export.phase is Phase.CLAIMED:
            return self._lease_seconds
        waited = (now_ms() - export.accepted_at) / 1000
        return min(self._queue_seconds, max(0, self._queue_seconds - waited))

    async def _end(self, record: CellRecord) -> None:
        ended = await self._registry.expire(record)
        if ended is not None and ended.last_outcome is not None:
            outcome = ended.last_outcome
            _log.warning(
                "an export was ended, as its exporter was not heard in time",
                extra={"cell": record.cell, "snapshot": outcome.name, "result": outcome.result},
            )
