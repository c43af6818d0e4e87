"""The queue: gives queued exports to exporters that wait for work."""

import asyncio
import re
import secrets
import time
from dataclasses import dataclass

from server.exports import transitions
from server.exports.lease import Claim, hash_held
from server.exports.model import CellRecord, Trust
from server.exports.repository import Repository
from server.exports.store import Store
from server.refusals import Refusal, Refused

_REQUEST_ID = re.compile(r"[a-zA-Z0-9_-]{16,64}", re.ASCII)
# A waiting claim reads the queue at least this often, in seconds, even without a notification from the store.
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    """A claim that an exporter sent: the hash of the claim's id and its holder, and the holder (the caller)."""

    id: str
    holder: str


def _request(request_id: str, holder: str) -> _Request:
    if not _REQUEST_ID.fullmatch(request_id):
        raise Refused(Refusal.CLAIM_INVALID)
    return _Request(hash_held(request_id, holder), holder)


def _is_claimed_by(record: CellRecord, request: _Request) -> bool:
    return record.export is not None and record.export.request_id == request.id


class Claims:
    """The claims of exporters, which wait for queued exports. Every method also raises what the store raises."""

    def __init__(self, store: Store, repository: Repository) -> None:
        self._store = store
        self._repository = repository
        self._waiting: set[asyncio.Event] = set()
        self._closing = False
        self._undoing: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Refuse all waiting claims with SERVER_SHUTDOWN."""
        self._closing = True
        for queued in self._waiting:
            queued.set()

    async def claim(self, request_id: str, wait_seconds: float, holder: str) -> Claim | None:
        """Give the oldest queued export to the caller. Return None if no export is queued within `wait_seconds`.

        Args:
            request_id: 16 to 64 characters of `A-Z a-z 0-9 _ -`. A claim with the id of an earlier one gets the same
                export again.
            holder: identifies the caller. Nobody else can repeat the claim or use the lease.

        Raises:
            Refused: CLAIM_INVALID, SERVER_SHUTDOWN
        """
        request = _request(request_id, holder)
        with self._store.queue_changes() as queued:
            self._waiting.add(queued)
            try:
                return await self._claim_when_queued(request, wait_seconds, queued)
            finally:
                self._waiting.discard(queued)

    async def give_back(self, request_id: str, holder: str) -> None:
        """Queue the export again that the caller's claim with this id was given, unless a report on it has arrived.

        Raises:
            Refused: CLAIM_INVALID
        """
        request = _request(request_id, holder)
        for record in await self._store.underway():
            if transitions.give_back(record, request.id) is not None:
                await self._repository.apply(record.cell, lambda latest: transitions.give_back(latest, request.id))

    async def _claim_when_queued(self, request: _Request, wait_seconds: float, queued: asyncio.Event) -> Claim | None:
        deadline = time.monotonic() + wait_seconds
        while True:
            queued.clear()
            claim = await self._claim_unless_cancelled(request)
            remaining = deadline - time.monotonic()
            if claim is not None or remaining <= 0:
                return claim
            if self._closing:
                raise Refused(Refusal.SERVER_SHUTDOWN)
            try:
                async with asyncio.timeout(min(remaining, _POLL_SECONDS)):
                    await queued.wait()
            except TimeoutError:
                continue

    async def _claim_unless_cancelled(self, request: _Request) -> Claim | None:
        """Claim the oldest queued export. If the caller leaves meanwhile, undo that: nobody would renew the lease."""
        claiming = asyncio.ensure_future(self._claim_oldest(request))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            undoing = asyncio.ensure_future(self._undo(claiming))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    async def _undo(self, claiming: asyncio.Future[Claim | None]) -> None:
        try:
            claim = await claiming
            if claim is not None:
                await self._repository.apply(claim.cell, lambda record: transitions.release(record, claim.proof))
        except Refused:
            # The store is unavailable. The lease expires instead.
            return

    async def _claim_oldest(self, request: _Request) -> Claim | None:
        token = secrets.token_urlsafe(16)
        # Try first the export that an earlier claim with the same id was given: the response to it may have been lost.
        for record in sorted(await self._store.underway(), key=lambda record: not _is_claimed_by(record, request)):
            export = record.export
            if export is None or record.trust is Trust.DOUBTFUL:
                continue
            token_hash = hash_held(token, request.holder)
            following = transitions.claim(record, export.export_id, request.id, token_hash)
            claimed = await self._repository.write(record, following)
            if claimed is not None and claimed.export is not None:
                return Claim(record.cell, claimed.export, token, request.holder)
        return None
