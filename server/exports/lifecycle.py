"""The life of an export: its start, its cancellation, its reports and its end.

The rules themselves are in `transitions`.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from itertools import count
from typing import Any, Protocol

from server.exports import events, transitions
from server.exports.clock import Clock
from server.exports.events import Events
from server.exports.lease import LeaseProof
from server.exports.model import Caller, CellRecord, Export, Outcome, Phase, Progress, Reason, Result, Trust
from server.exports.repository import Repository
from server.exports.store import Store
from server.refusals import Refusal, Refused


class Snapshots(Protocol):
    """The methods of the snapshot directory that the lifecycle calls. They block, and raise OSError."""

    def exists(self, cell: str, name: str) -> bool:
        """Return whether the cell has a snapshot of that name."""

    def seal(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Keep a dead exporter from publishing its snapshot, and return whether it had already published it.

        To publish is to link the finished file to its final name. If the exporter had not published, write the reason
        into the `.error` file of the snapshot.
        """

    def newest_epoch(self, cell: str) -> int:
        """Return the highest epoch (number of a lease) among the exporters that are writing a snapshot of the cell.

        Return 0 if there is none.
        """


class ExportLifecycle:
    """The start, the cancellation, the reports and the end of exports. Every method also raises what the store raises.

    Args:
        store: the store itself. `repository` refuses to read a doubtful record, but a report with a lease may still
            restore the export of such a record.
        log: the event log, which gets an event for each start and each end.
        queue_limit: how many exports may wait for an exporter. Simultaneous starts may exceed this by their number.
        clock: milliseconds since 1970.
        on_end: called once with each outcome that this server has written to the store.
    """

    def __init__(
        self,
        *,
        store: Store,
        repository: Repository,
        snapshots: Snapshots,
        log: Events,
        queue_limit: int,
        clock: Clock,
        on_end: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._repository = repository
        self._snapshots = snapshots
        self._events = log
        self._queue_limit = queue_limit
        self._clock = clock
        self._on_end = on_end
        # Strong references to running tasks: the event loop itself keeps only weak ones.
        self._shielded: set[asyncio.Task[Any]] = set()

    async def start(self, cell: str, name: str | None, request_key: str, caller: Caller) -> CellRecord:
        """Accept an export of the cell, and queue it.

        Args:
            name: the name of the snapshot, or None if the server is to choose one.

        Raises:
            Refused: NAME_INVALID, ALREADY_EXPORTING, SNAPSHOT_EXISTS, QUEUE_FULL (in this order)
        """
        if name is not None and not transitions.SNAPSHOT_NAME.fullmatch(name):
            raise Refused(Refusal.NAME_INVALID)
        while True:
            record = await self._repository.read(cell)
            if record.export is not None:
                raise Refused(Refusal.ALREADY_EXPORTING)
            # Read the snapshot directory before writing the record. If an export publishes a snapshot after this read,
            # it has also changed the record, and the write fails.
            free_name = await asyncio.to_thread(self._free_name, cell, name)
            if free_name is None:
                if await self._has_changed(record):
                    continue
                raise Refused(Refusal.SNAPSHOT_EXISTS, name=name or "")
            await self._require_queue_space()
            export = Export(
                export_id=secrets.token_hex(16),
                name=free_name,
                request_key=request_key,
                accepted_at=self._clock(),
            )
            written = await self._shield(self._write_start(record, export, caller))
            if written is not None:
                return written

    async def cancel(self, cell: str, name: str | None, caller: Caller) -> CellRecord:
        """Cancel an export. A queued export ends at once.

        The exporter of a claimed export is asked to end it by the response to its next report.

        Args:
            name: the snapshot whose export the caller wants to cancel, or None for any.

        Raises:
            Refused: NOT_EXPORTING
        """
        record = await self._repository.apply(cell, lambda latest: transitions.cancel(latest, name))
        if record.export is None or record.export.phase is not Phase.EXPIRING:
            return record
        return await self._shield(self._interrupt(record, caller)) or await self._repository.read(cell)

    async def report(self, cell: str, proof: LeaseProof, sequence: int, progress: Progress) -> bool:
        """Record an exporter's progress and renew its lease. Return whether the exporter is to end a cancelled export.

        Raises:
            Refused: PROGRESS_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        while True:
            record = await self._record_for(cell, proof)
            following = transitions.report(record, proof, sequence, progress)
            written = record if following is None else await self._repository.write(record, following)
            if written is not None:
                return written.export is not None and written.export.cancelled

    async def finish(
        self, cell: str, proof: LeaseProof, result: Result, reason: Reason | None, caller: Caller
    ) -> CellRecord:
        """End an export on behalf of its exporter.

        Raises:
            Refused: OUTCOME_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        while True:
            record = await self._record_for(cell, proof)
            following = transitions.finish(record, proof, result, reason, self._clock())
            if following is None:
                return record
            written = await self._shield(self._write_end(record, following, caller))
            if written is not None:
                return written

    async def expire(self, seen: CellRecord) -> CellRecord | None:
        """End an export that `expiry` found overdue. Return None if its record has changed since `seen` was read."""
        if seen.export is None:
            return None
        expiring: CellRecord | None = seen
        if seen.export.phase is not Phase.EXPIRING:
            expiring = await self._repository.write(seen, transitions.expire(seen))
        return None if expiring is None else await self._shield(self._interrupt(expiring, Caller()))

    async def stall(self, seen: CellRecord) -> None:
        """Mark an export as stalled, unless its record has changed since `seen` was read."""
        await self._repository.write(seen, transitions.stall(seen))

    async def _record_for(self, cell: str, proof: LeaseProof) -> CellRecord:
        """Return the record of a cell. If the store has lost the export of this lease, restore it from the proof."""
        record = await self._store.read(cell)
        restored = transitions.restore(record, proof)
        unsure = restored is not None or record.trust is Trust.DOUBTFUL
        if unsure and await asyncio.to_thread(self._snapshots.newest_epoch, cell) > proof.epoch:
            # An exporter with a newer lease is already writing a snapshot of the cell.
            raise Refused(Refusal.LEASE_LOST)
        return restored or record

    async def _has_changed(self, record: CellRecord) -> bool:
        return (await self._repository.read(record.cell)).revision != record.revision

    async def _require_queue_space(self) -> None:
        queued = [record for record in await self._store.underway() if _is_queued(record)]
        if len(queued) >= self._queue_limit:
            raise Refused(Refusal.QUEUE_FULL)

    async def _interrupt(self, expiring: CellRecord, caller: Caller) -> CellRecord | None:
        """End an EXPIRING export, whose reports are already refused. Return None if another server has ended it."""
        export = expiring.export
        if export is None:
            return None
        reason = _interruption(export)
        published = await asyncio.to_thread(
            self._snapshots.seal, expiring.cell, export.name, export.export_id, export.epoch, reason.name
        )
        result = Result.SUCCEEDED if published else Result.INTERRUPTED
        following = transitions.end(expiring, result, None if published else reason, self._clock())
        return await self._write_end(expiring, following, caller)

    async def _write_start(self, record: CellRecord, export: Export, caller: Caller) -> CellRecord | None:
        written = await self._repository.write(record, transitions.accept(record, export))
        if written is not None:
            await self._events.write(events.start(export, caller))
        return written

    async def _write_end(self, record: CellRecord, following: CellRecord | None, caller: Caller) -> CellRecord | None:
        written = await self._repository.write(record, following)
        if written is not None and record.export is not None and written.last_outcome is not None:
            self._on_end(written.last_outcome)
            await self._events.write(events.end(record.export, written.last_outcome, caller))
        return written

    async def _shield(self, work: Coroutine[None, None, CellRecord | None]) -> CellRecord | None:
        """Run `work` to its end even if the caller leaves: a written start or end must also reach the event log."""
        task = asyncio.ensure_future(work)
        self._shielded.add(task)
        task.add_done_callback(self._shielded.discard)
        return await asyncio.shield(task)

    def _free_name(self, cell: str, name: str | None) -> str | None:
        """Return the name for a new snapshot, or None if a snapshot of the wanted name exists."""
        if name is not None:
            return None if self._snapshots.exists(cell, name) else name
        stem = f"{cell}_{datetime.fromtimestamp(self._clock() / 1000, UTC):%Y%m%d_%H%M%S}"
        candidates = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
        return next(candidate for candidate in candidates if not self._snapshots.exists(cell, candidate))


def _is_queued(record: CellRecord) -> bool:
    return record.export is not None and record.export.phase is Phase.QUEUED


def _interruption(export: Export) -> Reason:
    if export.cancelled:
        return Reason.CANCELLED
    return Reason.LEASE_EXPIRED if export.epoch else Reason.QUEUE_TIMEOUT
