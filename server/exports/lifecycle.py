"""Starts, reports and ends of exports.

Each rule is a step (see `steps`) from one record to the next. The registry knows neither messages nor SQL.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Protocol

from server.exports import events, transitions
from server.exports.events import Events
from server.exports.lease import LeaseProof
from server.exports.model import Caller, CellRecord, Export, Outcome, Phase, Progress, Reason, Result, Trust
from server.exports.repository import Repository
from server.refusals import Refusal, Refused


class Snapshots(Protocol):
    """What the registry has to know of the snapshot directory. Methods block, and raise OSError."""

    def exists(self, cell: str, name: str) -> bool:
        """Whether there is a snapshot of that name."""

    def seal(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Make sure that a dead exporter can't publish any more, and tell whether it had published before.

        If it had not, leave a note of the reason beside where the snapshot would be.
        """

    def newest_epoch(self, cell: str) -> int:
        """The highest epoch of all who are writing a snapshot of the cell; 0 if nobody is."""


class ExportLifecycle:
    """Applies the rules. Besides what is said there, every method raises what the store raises.

    Args:
        queue_limit: how many exports may wait for an exporter. Where several are started at the same moment it may be
            exceeded by as many.
        on_end: called once with each end of an export that this server has written.
    """

    def __init__(
        self,
        *,
        records: Repository,
        snapshots: Snapshots,
        log: Events,
        queue_limit: int,
        on_end: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._records = records
        self._snapshots = snapshots
        self._events = log
        self._queue_limit = queue_limit
        self._on_end = on_end
        self._underway: set[asyncio.Task[Any]] = set()

    async def get(self, cell: str) -> CellRecord:
        return await self._records.read(cell)

    async def start(self, cell: str, name: str | None, request_key: str, caller: Caller) -> CellRecord:
        """Accept an export.

        Raises:
            Refused: NAME_INVALID, ALREADY_EXPORTING, SNAPSHOT_EXISTS, QUEUE_FULL (in this order)
        """
        if name is not None and not transitions.SNAPSHOT_NAME.fullmatch(name):
            raise Refused(Refusal.NAME_INVALID)
        while True:
            record = await self._records.read(cell)
            if record.export is not None:
                raise Refused(Refusal.ALREADY_EXPORTING)
            # The directory is read before the record is written: that nothing was published in between is sure,
            # because only an export under way publishes, and then the record would have changed.
            try:
                free = await asyncio.to_thread(self._free_name, cell, name)
            except Refused:
                # Of a snapshot that appeared meanwhile: then its export may be followed by another already.
                if (await self._records.read(cell)).revision != record.revision:
                    continue
                raise
            await self._require_room()
            export = Export(
                export_id=secrets.token_hex(16),
                name=free,
                request_key=request_key,
                accepted_at=self._records.clock(),
            )
            written = await self._whole(self._accept(record, export, caller))
            if written is not None:
                return written

    async def cancel(self, cell: str, name: str | None, caller: Caller) -> CellRecord:
        """End an export before its time: at once if it is queued, or else with its exporter's next report.

        Args:
            name: of the snapshot that is meant, or None for any.

        Raises:
            Refused: NOT_EXPORTING
        """
        record = await self._records.step(cell, lambda record: transitions.cancel(record, name))
        if record.export is None or record.export.phase is not Phase.EXPIRING:
            return record
        return await self._whole(self._end_expiring(record, caller)) or await self._records.read(cell)

    async def report(self, cell: str, proof: LeaseProof, sequence: int, progress: Progress) -> bool:
        """Take in how far an export is, and renew its lease. Returns whether it is to end.

        Raises:
            Refused: PROGRESS_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        while True:
            record = await self._latest(cell, proof)
            following = transitions.advance(record, proof, sequence, progress)
            written = record if following is None else await self._records.write(record, following)
            if written is not None:
                return written.export is not None and written.export.cancelled

    async def finish(
        self, cell: str, proof: LeaseProof, result: Result, reason: Reason | None, caller: Caller
    ) -> CellRecord:
        """End an export for its exporter.

        Raises:
            Refused: OUTCOME_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        while True:
            record = await self._latest(cell, proof)
            following = transitions.finish(record, proof, result, reason, self._records.clock())
            if following is None:
                return record
            written = await self._whole(self._end(record, following, caller))
            if written is not None:
                return written

    async def expire(self, seen: CellRecord) -> CellRecord | None:
        """End an export that nobody speaks for, if its record is still as seen. Returns None if it is not."""
        if seen.export is None:
            return None
        expiring: CellRecord | None = seen
        if seen.export.phase is not Phase.EXPIRING:
            expiring = await self._records.write(seen, transitions.expire(seen))
        return None if expiring is None else await self._whole(self._end_expiring(expiring, Caller()))

    async def stall(self, seen: CellRecord) -> None:
        """Let an export be known as one that doesn't move, if its record is still as seen."""
        await self._records.write(seen, transitions.stall(seen))

    async def _latest(self, cell: str, proof: LeaseProof) -> CellRecord:
        """The record of a cell, as far as the bearer of a lease knows it better than the store."""
        record = await self._records.read_though_doubtful(cell)
        restored = transitions.restore(record, proof)
        unheard = restored is not record or record.trust is Trust.DOUBTFUL
        if unheard and await asyncio.to_thread(self._snapshots.newest_epoch, cell) > proof.epoch:
            # Somebody has taken the cell over from this one.
            raise Refused(Refusal.LEASE_LOST)
        return restored

    async def _require_room(self) -> None:
        queued = [record for record in await self._records.underway() if _is_queued(record)]
        if len(queued) >= self._queue_limit:
            raise Refused(Refusal.QUEUE_FULL)

    async def _end_expiring(self, expiring: CellRecord, caller: Caller) -> CellRecord | None:
        """End an export whose reports are refused already. Returns None if somebody else has."""
        export = expiring.export
        if export is None:
            return None
        reason = _interruption(export)
        published = await asyncio.to_thread(
            self._snapshots.seal, expiring.cell, export.name, export.export_id, export.epoch, reason.name
        )
        result = Result.SUCCEEDED if published else Result.INTERRUPTED
        following = transitions.end(expiring, result, None if published else reason, self._records.clock())
        return await self._end(expiring, following, caller)

    async def _accept(self, record: CellRecord, export: Export, caller: Caller) -> CellRecord | None:
        written = await self._records.write(record, transitions.accept(record, export))
        if written is not None:
            await self._events.write(events.start(export, caller))
        return written

    async def _end(self, record: CellRecord, following: CellRecord | None, caller: Caller) -> CellRecord | None:
        written = await self._records.write(record, following)
        if written is not None and record.export is not None and written.last_outcome is not None:
            if self._on_end is not None:
                self._on_end(written.last_outcome)
            await self._events.write(events.end(record.export, written.last_outcome, caller))
        return written

    async def _whole(self, work: Coroutine[None, None, CellRecord | None]) -> CellRecord | None:
        """Do what must not stop half-way, though the caller may go away meanwhile."""
        task = asyncio.ensure_future(work)
        self._underway.add(task)
        task.add_done_callback(self._underway.discard)
        return await asyncio.shield(task)

    def _free_name(self, cell: str, name: str | None) -> str:
        if name is not None:
            if self._snapshots.exists(cell, name):
                raise Refused(Refusal.SNAPSHOT_EXISTS, name=name)
            return name
        stem = f"{cell}_{datetime.fromtimestamp(self._records.clock() / 1000, UTC):%Y%m%d_%H%M%S}"
        number = 1
        while self._snapshots.exists(cell, free := stem if number == 1 else f"{stem}_{number}"):
            number += 1
        return free


def _is_queued(record: CellRecord) -> bool:
    return record.export is not None and record.export.phase is Phase.QUEUED


def _interruption(export: Export) -> Reason:
    if export.cancelled:
        return Reason.CANCELLED
    return Reason.LEASE_EXPIRED if export.epoch else Reason.QUEUE_TIMEOUT
