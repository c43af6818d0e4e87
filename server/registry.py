"""Starts, claims, reports and ends of exports.

Each rule is a step (see `steps`) from one record to the next, written only if nobody else has written meanwhile, and
thought over anew otherwise. The registry knows neither messages nor SQL.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from server import steps
from server.errors import Refusal, Refused
from server.model import CellRecord, Export, LeaseProof, Phase, Progress, Reason, Result
from server.stores import Store

Step = Callable[[CellRecord], CellRecord | None]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,192}", re.ASCII)
_REQUEST_ID = re.compile(r"[a-zA-Z0-9_-]{16,64}", re.ASCII)
# How often a waiting claim looks by itself, for an export that another server accepted.
_POLL_SECONDS = 1.0


class Snapshots(Protocol):
    """What the registry has to know of the snapshot directory. Methods block, and raise OSError."""

    def exists(self, cell: str, name: str) -> bool:
        """Whether there is a snapshot of that name."""

    def settle(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Make sure that a dead exporter can't publish any more, and tell whether it had published before.

        If it had not, leave a note of the reason beside where the snapshot would be.
        """


@dataclass(frozen=True, slots=True)
class Claim:
    """An export given to an exporter, and the secret of the lease."""

    cell: str
    export: Export
    token: str

    @property
    def proof(self) -> LeaseProof:
        return prove(self.export.export_id, self.export.epoch, self.token)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def prove(export_id: str, epoch: int, token: str) -> LeaseProof:
    """What to compare with the record: it holds no token, but its hash."""
    return LeaseProof(
        export_id=export_id, epoch=epoch, token_hash=hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
    )


class Registry:
    """Applies the rules to a store. Besides what is said there, every method raises what the store raises."""

    def __init__(self, *, store: Store, snapshots: Snapshots, clock: Callable[[], int] = now_ms) -> None:
        self._store = store
        self._snapshots = snapshots
        self._clock = clock
        self._queued = asyncio.Event()
        self._closing = False
        # How often the store refused a write: what was to be written may have been a sign of life.
        self.refused_writes = 0
        self._afterwork: set[asyncio.Task[None]] = set()

    async def get(self, cell: str) -> CellRecord:
        return await self._store.read(cell)

    async def start(self, cell: str, name: str | None, request_key: str) -> CellRecord:
        """Accept an export.

        Raises:
            Refused: NAME_INVALID, ALREADY_EXPORTING, SNAPSHOT_EXISTS (in this order)
        """
        if name is not None and not _NAME.fullmatch(name):
            raise Refused(Refusal.NAME_INVALID)
        while True:
            record = await self._store.read(cell)
            if record.export is not None:
                raise Refused(Refusal.ALREADY_EXPORTING)
            # The directory is read before the record is written: that nothing was published in between is sure,
            # because only an export under way publishes, and then the record would have changed.
            export = Export(
                export_id=secrets.token_hex(16),
                name=await asyncio.to_thread(self._free_name, cell, name),
                request_key=request_key,
                accepted_at=self._clock(),
            )
            written = await self._write(record, steps.accept(record, export))
            if written is not None:
                self._queued.set()
                return written

    async def claim(self, request_id: str, wait_seconds: float) -> Claim | None:
        """Give the oldest queued export to the caller, or None if there is none within the wait.

        Raises:
            Refused: CLAIM_INVALID, SERVER_SHUTDOWN
        """
        if not _REQUEST_ID.fullmatch(request_id):
            raise Refused(Refusal.CLAIM_INVALID)
        deadline = time.monotonic() + wait_seconds
        while True:
            self._queued.clear()
            claim = await self._claim_unless_cancelled(request_id)
            remaining = deadline - time.monotonic()
            if claim is not None or remaining <= 0:
                return claim
            if self._closing:
                raise Refused(Refusal.SERVER_SHUTDOWN)
            try:
                async with asyncio.timeout(min(remaining, _POLL_SECONDS)):
                    await self._queued.wait()
            except TimeoutError:
                continue

    async def report(self, cell: str, proof: LeaseProof, sequence: int, progress: Progress) -> None:
        """Take in how far an export is, and renew its lease.

        Raises:
            Refused: PROGRESS_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        await self._step(cell, lambda record: steps.advance(record, proof, sequence, progress))

    async def finish(self, cell: str, proof: LeaseProof, result: Result, reason: Reason | None) -> CellRecord:
        """End an export for its exporter.

        Raises:
            Refused: OUTCOME_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
        """
        return await self._step(cell, lambda record: steps.finish(record, proof, result, reason, self._clock()))

    async def expire(self, seen: CellRecord) -> CellRecord | None:
        """End an export that nobody speaks for, if its record is still as seen. Returns None if it is not."""
        if seen.export is None:
            return None
        expiring: CellRecord | None = seen
        if seen.export.phase is not Phase.EXPIRING:
            expiring = await self._write(seen, steps.expire(seen))
        if expiring is None or expiring.export is None:
            return None
        export = expiring.export
        reason = Reason.LEASE_EXPIRED if export.epoch else Reason.QUEUE_TIMEOUT
        published = await asyncio.to_thread(
            self._snapshots.settle, seen.cell, export.name, export.export_id, export.epoch, reason.name
        )
        result = Result.SUCCEEDED if published else Result.INTERRUPTED
        return await self._write(expiring, steps.end(expiring, result, None if published else reason, self._clock()))

    def close(self) -> None:
        """Send waiting exporters away."""
        self._closing = True
        self._queued.set()

    async def _claim_unless_cancelled(self, request_id: str) -> Claim | None:
        """A claim whose caller goes away in the middle is undone, so that no export waits for nobody's lease."""
        claiming = asyncio.ensure_future(self._claim_oldest(request_id))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            undoing = asyncio.ensure_future(self._undo(claiming))
            self._afterwork.add(undoing)
            undoing.add_done_callback(self._afterwork.discard)
            raise

    async def _undo(self, claiming: asyncio.Future[Claim | None]) -> None:
        try:
            claim = await claiming
            if claim is not None:
                await self._step(claim.cell, lambda record: steps.release(record, claim.proof))
                self._queued.set()
        except Refused:
            # The store is away: the lease will run out instead.
            return

    async def _claim_oldest(self, request_id: str) -> Claim | None:
        token = secrets.token_urlsafe(16)
        for record in await self._store.underway():
            export = record.export
            if export is None:
                continue
            token_hash = prove(export.export_id, export.epoch, token).token_hash
            claimed = await self._write(record, steps.claim(record, export.export_id, request_id, token_hash))
            if claimed is not None and claimed.export is not None:
                return Claim(record.cell, claimed.export, token)
        return None

    async def _step(self, cell: str, step: Step) -> CellRecord:
        """Take a step from whatever the record is, and return the record after it."""
        while True:
            record = await self._store.read(cell)
            following = step(record)
            if following is None:
                return record
            written = await self._write(record, following)
            if written is not None:
                return written

    async def _write(self, record: CellRecord, following: CellRecord | None) -> CellRecord | None:
        """Write a record's successor; None if there is none, or somebody else was faster."""
        if following is None:
            return None
        following = replace(following, revision=record.revision + 1, updated_at=self._clock())
        try:
            return following if await self._store.replace(following) else None
        except Refused:
            self.refused_writes += 1
            raise

    def _free_name(self, cell: str, name: str | None) -> str:
        if name is not None:
            if self._snapshots.exists(cell, name):
                raise Refused(Refusal.SNAPSHOT_EXISTS, name=name)
            return name
        stem = f"{cell}_{datetime.fromtimestamp(self._clock() / 1000, UTC):%Y%m%d_%H%M%S}"
        number = 1
        while self._snapshots.exists(cell, free := stem if number == 1 else f"{stem}_{number}"):
            number += 1
        return free
