"""Ends exports that nobody speaks for, marks those that don't move, and lets a store in doubt settle.

An export ends when its lease was not renewed in time, when nobody has served the queue, or when its exporter has been
told to end it and doesn't.

Time here is what this server has itself watched, on a clock that does not jump: a restart, a store that was away, or
a pause of the whole process begins the count anew. So an exporter is never given up on for want of our own attention.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.exports.clock import now_ms
from server.exports.lifecycle import ExportLifecycle
from server.exports.model import CellRecord, Export, Phase, Progress, Trust, told
from server.exports.repository import Repository
from server.exports.store_pulse import StorePulse
from server.refusals import Refused

_TICK_SECONDS = 0.25
# Health has to tell within two seconds that the store is away.
_CHECK_SECONDS = 1.0
# A sleep that took longer than this was a pause of the whole process: reports that came meanwhile are still unread.
_PAUSE_SECONDS = 1.0
# For how many leases nothing must have moved, to call an export stalled.
_STALL_LEASES = 4

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """An export under way, as it was when first seen so, and what becomes of it if that stays so."""

    signs_of_life: tuple[str, Phase, int, str, int]
    over_at: float
    progress: Progress
    stalled_at: float
    cut_off_at: float = math.inf


@dataclass(frozen=True, slots=True)
class _Doubt:
    """What the store calls its doubt, and when it is over."""

    id: int
    over_at: float


class Expiry:
    """Looks at every export under way, several times a second.

    Args:
        pulse: gets to know whether the store answers.
        lease_seconds: after how long without a report an export is interrupted.
        queue_seconds: after how long without an exporter it is.
        on_look: called with the exports under way each time they were looked at.
    """

    def __init__(
        self,
        *,
        records: Repository,
        registry: ExportLifecycle,
        pulse: StorePulse,
        lease_seconds: float,
        queue_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        on_look: Callable[[Sequence[CellRecord]], None] | None = None,
    ) -> None:
        self._records = records
        self._registry = registry
        self._pulse = pulse
        self._lease_seconds = lease_seconds
        self._queue_seconds = queue_seconds
        self._monotonic = monotonic
        self._on_look = on_look
        # By cell.
        self._watched: dict[str, _Watched] = {}
        self._doubt: _Doubt | None = None
        self._told_doubt: int | None = None
        self._checked_at = monotonic()
        self._away = False
        self._refused_writes = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            asleep = self._monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            if self._monotonic() - asleep > _PAUSE_SECONDS:
                self._begin_anew()
            await self._look_again()

    async def _look_again(self) -> None:
        try:
            await self._check_store()
            await self.look()
            if self._away:
                _log.info("the store can be used again")
            self._away = False
        except Refused as refused:
            self._begin_anew()
            if not self._away:
                _log.error("the store can't be used", extra={"reason": refused.refusal.name, "note": refused.note})
            self._away = True
        except Exception:
            # Whatever it was: a watch that has ended would leave every export in progress for ever.
            _log.exception("unexpected error")

    def _begin_anew(self) -> None:
        """Count from now: what happened meanwhile, nobody here has seen."""
        self._watched.clear()
        self._doubt = None

    async def _check_store(self) -> None:
        now = self._monotonic()
        if self._away or now - self._checked_at >= min(_CHECK_SECONDS, self._lease_seconds / 3):
            self._checked_at = now
            with self._pulse.asking():
                await self._records.check()

    async def look(self) -> None:
        """Look once, and end what is over."""
        with self._pulse.asking():
            records = await self._records.underway()
        if self._on_look is not None:
            self._on_look(records)
        now = self._monotonic()
        if self._records.refused_writes != self._refused_writes:
            # Reports may have been among them.
            self._refused_writes = self._records.refused_writes
            self._begin_anew()
        self._watched = {
            record.cell: self._watch(record.cell, record.export, now) for record in records if record.export
        }
        for record in records:
            if record.export is not None and record.trust is not Trust.DOUBTFUL:
                await self._judge(record, record.export, now)
        await self._settle(await self._records.doubt(), now)

    def _watch(self, cell: str, export: Export, now: float) -> _Watched:
        signs_of_life = (export.export_id, export.phase, export.epoch, export.token_hash, export.sequence)
        watched = self._watched.get(cell)
        stalled_at = now + _STALL_LEASES * self._lease_seconds
        if watched is None or watched.signs_of_life[0] != export.export_id:
            over_at = now + self._seconds_left(export)
            watched = _Watched(signs_of_life, over_at, export.progress, stalled_at)
        if watched.signs_of_life != signs_of_life:
            watched.signs_of_life = signs_of_life
            watched.over_at = now + self._seconds_left(export)
        if watched.progress != export.progress or export.phase is Phase.QUEUED:
            watched.progress, watched.stalled_at = export.progress, stalled_at
        if export.cancelled and watched.cut_off_at == math.inf:
            watched.cut_off_at = now + self._lease_seconds
        return watched

    def _seconds_left(self, export: Export) -> float:
        if export.phase is Phase.EXPIRING:
            return 0
        if export.phase is Phase.CLAIMED:
            return self._lease_seconds
        waited = (now_ms() - export.accepted_at) / 1000
        return min(self._queue_seconds, max(0, self._queue_seconds - waited))

    async def _judge(self, record: CellRecord, export: Export, now: float) -> None:
        watched = self._watched[record.cell]
        if min(watched.over_at, watched.cut_off_at) <= now:
            # If this one can't be ended now, it has its turn again, and the others have theirs.
            watched.over_at = now + self._lease_seconds
            watched.cut_off_at = watched.over_at if export.cancelled else math.inf
            await self._end(record)
        elif watched.stalled_at <= now and not export.stalled:
            await self._registry.stall(record)

    async def _end(self, record: CellRecord) -> None:
        ended = await self._registry.expire(record)
        if ended is not None and ended.last_outcome is not None:
            outcome = ended.last_outcome
            _log.warning(
                "an export was ended, as its exporter was not heard in time",
                extra={
                    "cell": record.cell,
                    "snapshot": outcome.name,
                    "request_key": record.export.request_key if record.export else "",
                }
                | told(outcome.result, outcome.reason),
            )

    async def _settle(self, doubt: int | None, now: float) -> None:
        """Exporters that live have reported within a lease: what nobody has spoken for by then is as it is kept."""
        if doubt is None:
            self._doubt = None
        elif self._doubt is None or self._doubt.id != doubt:
            self._doubt = _Doubt(doubt, now + self._lease_seconds)
            if self._told_doubt != doubt:
                self._told_doubt = doubt
                _log.warning("the store is new, or lost writes: no status is given until exporters had a lease's time")
        elif self._doubt.over_at <= now:
            await self._records.settle(doubt)
            _log.info("the store is settled")
