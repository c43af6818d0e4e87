"""Starts, reports and ends of exports.

Each rule is a step (see `steps`) from one record to the next. The registry knows neither messages nor SQL.
"""

import asyncio
import re
import secrets
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Protocol

from server import events, steps
from server.claims import Claims
from server.errors import Refusal, Refused
from server.events import Events
from server.model import Caller, CellRecord, Export, LeaseProof, Phase, Progress, Reason, Result
from server.records import Records

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,192}", re.ASCII)


class Snapshots(Protocol):
    """What the registry has to know of the snapshot directory. Methods block, and raise OSError."""

    def exists(self, cell: str, name: str) -> bool:
        """Whether there is a snapshot of that name."""

    def settle(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Make sure that a dead exporter can't publish any more, and tell whether it had published before.

        If it had not, leave a note of the reason beside where the snapshot would be.
        """


class Registry:
    """Applies the rules. Besides what is said there, every method raises what the store raises."""

    def __init__(self, *, records: Records, claims: Claims, snapshots: Snapshots, log: Events) -> None:
        self._records = records
        self._claims = claims
        self._snapshots = snapshots
        self._events = log
        self._underway: set[asyncio.Task[Any]] = set()

    async def get(self, cell: str) -> CellRecord:
        return await self._records.read(cell)

    async def start(self, cell: str, name: str | None, request_key: str, caller: Caller) -> CellRecord:
        """Accept an export.

        Raises:
            Refused: NAME_INVALID, ALREADY_EXPORTING, SNAPSHOT_EXISTS (in this order)
        """
        if name is not None and not _NAME.fullmatch(name):
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
            export = Export(
                export_id=secrets.token_hex(16),
                name=free,
                request_key=request_key,
                accepted_at=self._records.clock(),
            )
            written = await self._whole(self._accept(record, export, caller))
            if written is not None:
                return written

    async def report(self, cell: str, proof: LeaseProof, sequence: int, progress: Progress) -> None:
        """Take in how far an export is, and renew its lease.

        Raises:
            Refused: PROGRESS_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        await self._records.step(cell, lambda record: steps.advance(record, proof, sequence, progress))

    async def finish(
        self, cell: str, proof: LeaseProof, result: Result, reason: Reason | None, caller: Caller
    ) -> CellRecord:
        """End an export for its exporter.

        Raises:
            Refused: OUTCOME_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        while True:
            record = await self._records.read(cell)
            following = steps.finish(record, proof, result, reason, self._records.clock())
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
            expiring = await self._records.write(seen, steps.expire(seen))
        if expiring is None or expiring.export is None:
            return None
        export = expiring.export
        reason = Reason.LEASE_EXPIRED if export.epoch else Reason.QUEUE_TIMEOUT
        published = await asyncio.to_thread(
            self._snapshots.settle, seen.cell, export.name, export.export_id, export.epoch, reason.name
        )
        result = Result.SUCCEEDED if published else Result.INTERRUPTED
        following = steps.end(expiring, result, None if published else reason, self._records.clock())
        return await self._whole(self._end(expiring, following, Caller()))

    async def _accept(self, record: CellRecord, export: Export, caller: Caller) -> CellRecord | None:
        written = await self._records.write(record, steps.accept(record, export))
        if written is not None:
            self._claims.wake()
            await self._events.write(events.start(export, caller))
        return written

    async def _end(self, record: CellRecord, following: CellRecord | None, caller: Caller) -> CellRecord | None:
        written = await self._records.write(record, following)
        if written is not None and record.export is not None and written.last_outcome is not None:
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
