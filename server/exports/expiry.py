"""Expiry: the background scan that ends overdue exports, marks stalled exports, and ends the doubt of a store.

An export is overdue, and the server ends it, if its lease was not renewed in time, if no exporter has claimed it in
time, or if it was cancelled a lease ago and its exporter still goes on reporting.

The server measures time on a clock that does not jump. After a restart of the server, after the store was unavailable,
or after a pause of the whole process, every lease counts in full again: an exporter never loses its lease because this
server wasn't listening.

A store is in doubt if it is new or lost writes, so that its records may be outdated.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.exports.clock import Clock
from server.exports.lease import renewal
from server.exports.lifecycle import ExportLifecycle
from server.exports.model import CellRecord, Export, Phase, Progress, Trust, outcome_fields
from server.exports.store import Store
from server.exports.store_pulse import StorePulse
from server.refusals import Refused

_TICK_SECONDS = 0.25
# The store is checked at least this often, in seconds. Health must report an unavailable store within two seconds.
_CHECK_SECONDS = 1.0
# If the sleep before a scan took longer than this, in seconds, the whole process was paused. Reports that arrived
# meanwhile are still unread.
_PAUSE_SECONDS = 1.0
# An export is stalled when its exporter's reports have shown no progress for this many leases.
_STALL_LEASES = 4

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tracked:
    """An export in progress, and the times at which the server ends it or marks it as stalled, unless it changes."""

    export_id: str
    renewal: tuple[object, ...]
    expires_at: float
    progress: Progress
    stalls_at: float
    # The server ends a cancelled export itself at this time, even if its exporter goes on reporting: one lease after
    # the scan that first saw the cancellation. Infinite for an export that isn't cancelled.
    cut_off_at: float = math.inf


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A doubt of the store: its records may be outdated, because Redis lost writes.

    `number` identifies the doubt. At `ends_at` (on the monotonic clock) the server trusts the records again.
    """

    number: int
    ends_at: float


class Expiry:
    """The scan of all exports in progress, four times a second.

    Args:
        pulse: records, for health, whether the store answers the scans.
        lease_seconds: an export without a report for this long is interrupted.
        queue_seconds: an export that no exporter has claimed for this long is interrupted.
        clock: milliseconds since 1970, to compute how long an export has already waited in the queue.
        on_scan: called in each scan with the records of all exports in progress.
    """

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: ExportLifecycle,
        pulse: StorePulse,
        lease_seconds: float,
        queue_seconds: float,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        on_scan: Callable[[Sequence[CellRecord]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._pulse = pulse
        self._lease_seconds = lease_seconds
        self._queue_seconds = queue_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._on_scan = on_scan
        # The exports of the latest scan, by cell.
        self._tracked: dict[str, _Tracked] = {}
        self._doubt: _Doubt | None = None
        self._logged_doubt: int | None = None
        self._checked_at = monotonic()
        self._unavailable = False
        self._must_restart = False

    def restart(self) -> None:
        """Count every lease again from the next scan on: this server may have missed a report until now."""
        self._must_restart = True

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            slept_at = self._monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            if self._monotonic() - slept_at > _PAUSE_SECONDS:
                self.restart()
            await self._tick()

    async def _tick(self) -> None:
        try:
            await self._check_store()
            await self.scan()
            if self._unavailable:
                _log.info("store available again")
            self._unavailable = False
        except Refused as refused:
            self.restart()
            if not self._unavailable:
                _log.error("store unavailable", extra={"reason": refused.refusal.name, "note": refused.note})
            self._unavailable = True
        except Exception:
            # The scans must go on: otherwise an export with a dead exporter would stay in progress for ever.
            _log.exception("unexpected error in the scan for expired exports")

    async def _check_store(self) -> None:
        now = self._monotonic()
        if self._unavailable or now - self._checked_at >= min(_CHECK_SECONDS, self._lease_seconds / 3):
            self._checked_at = now
            with self._pulse.asking():
                await self._store.check()

    async def scan(self) -> None:
        """Scan once: end overdue exports, mark stalled exports, and end a doubt that has lasted one lease."""
        with self._pulse.asking():
            records = await self._store.underway()
        self._on_scan(records)
        now = self._monotonic()
        if self._must_restart:
            self._must_restart = False
            self._tracked.clear()
            self._doubt = None
        self._tracked = {
            record.cell: self._track(record.cell, record.export, now) for record in records if record.export
        }
        for record in records:
            if record.export is not None and record.trust is not Trust.DOUBTFUL:
                await self._end_or_stall(record, record.export, now)
        await self._end_doubt(await self._store.doubt(), now)

    def _track(self, cell: str, export: Export, now: float) -> _Tracked:
        stalls_at = now + _STALL_LEASES * self._lease_seconds
        tracked = self._tracked.get(cell)
        if tracked is None or tracked.export_id != export.export_id:
            expires_at = now + self._seconds_left(export)
            tracked = _Tracked(export.export_id, renewal(export), expires_at, export.progress, stalls_at)
        if tracked.renewal != renewal(export):
            tracked.renewal = renewal(export)
            tracked.expires_at = now + self._seconds_left(export)
        if tracked.progress != export.progress or export.phase is Phase.QUEUED:
            tracked.progress, tracked.stalls_at = export.progress, stalls_at
        if export.cancelled and tracked.cut_off_at == math.inf:
            tracked.cut_off_at = now + self._lease_seconds
        return tracked

    def _seconds_left(self, export: Export) -> float:
        if export.phase is Phase.EXPIRING:
            return 0
        if export.phase is Phase.CLAIMED:
            return self._lease_seconds
        waited = (self._clock() - export.accepted_at) / 1000
        return min(self._queue_seconds, max(0, self._queue_seconds - waited))

    async def _end_or_stall(self, record: CellRecord, export: Export, now: float) -> None:
        tracked = self._tracked[record.cell]
        if min(tracked.expires_at, tracked.cut_off_at) <= now:
            # If ending this export fails now, try again only after another lease: the next scans must reach the other
            # exports, too.
            tracked.expires_at = now + self._lease_seconds
            tracked.cut_off_at = tracked.expires_at if export.cancelled else math.inf
            await self._end(record, export)
        elif tracked.stalls_at <= now and not export.stalled:
            await self._lifecycle.stall(record)

    async def _end(self, record: CellRecord, export: Export) -> None:
        ended = await self._lifecycle.expire(record)
        if ended is not None and ended.last_outcome is not None:
            outcome = ended.last_outcome
            fields = {"cell": record.cell, "snapshot": outcome.name, "request_key": export.request_key}
            _log.warning("export ended by the server", extra=fields | outcome_fields(outcome.result, outcome.reason))

    async def _end_doubt(self, doubt: int | None, now: float) -> None:
        """End the store's doubt after one lease.

        By then every living exporter has reported, and each report has written the record of its cell again. A cell
        whose record was not written again has no living exporter, so the store can trust the old record.
        """
        if doubt is None:
            self._doubt = None
        elif self._doubt is None or self._doubt.number != doubt:
            self._doubt = _Doubt(doubt, now + self._lease_seconds)
            if self._logged_doubt != doubt:
                self._logged_doubt = doubt
                _log.warning(
                    "store is new or lost writes; refusing statuses for one lease, so that exporters can report first"
                )
        elif self._doubt.ends_at <= now:
            await self._store.settle(doubt)
            _log.info("store settled")
