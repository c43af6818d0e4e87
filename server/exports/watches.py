"""Watches: the newest record of a cell, sent to any number of subscribers.

All subscribers of one cell share a hub, which reads the store once after each change. Nothing is queued: a slow
subscriber skips to the newest record.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from server.exports.cell_hub import CellHub, ReadSlots
from server.exports.model import CellRecord
from server.exports.repository import Repository
from server.exports.store import Store
from server.refusals import Refusal, Refused

# How many watched cells are read from the store at a time, so that other calls get their share of the store.
_READS_AT_A_TIME = 8
# How long a watched cell waits for its turn to be read, in seconds: as long as a call may take.
_PATIENCE_SECONDS = 10.0
# While the store is unavailable, it is checked for the watches this often, in seconds.
_RECOVERY_SECONDS = 0.5
# A keep-alive says that the record has not changed. If the latest read of the record began at most this many seconds
# ago, the keep-alive is sent without another read.
_FRESH_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchUpdate:
    """The newest record of a cell, and whether it differs from the last record that the subscriber was sent."""

    record: CellRecord
    changed: bool


class Watches:
    """The watches of all cells. The hub of a watched cell reads the store, and sends each update to all subscribers.

    Args:
        keepalive_seconds: the longest time without an update for a cell that doesn't change.
        patience_seconds: the longest time that a hub waits for its turn to read the store. After that time the watches
            of the cell end with STORE_UNAVAILABLE.
    """

    def __init__(
        self,
        store: Store,
        repository: Repository,
        *,
        keepalive_seconds: float,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._repository = repository
        self._keepalive_seconds = keepalive_seconds
        self._slots = ReadSlots(count=_READS_AT_A_TIME, patience_seconds=patience_seconds)
        self._hubs: dict[str, CellHub] = {}
        # The hubs that wait for an unavailable store.
        self._waiting: set[CellHub] = set()
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False

    async def close(self) -> None:
        """End every watch with SERVER_SHUTDOWN."""
        self._closing = True
        for hub in list(self._hubs.values()):
            await hub.wake_subscribers()

    async def watch(self, cell: str, after_revision: int, *, until_ready: bool) -> AsyncGenerator[WatchUpdate, None]:
        """Yield the current record, then each newer one, and keep-alives while nothing changes.

        A keep-alive is sent only after the store has confirmed that nothing has changed.

        Args:
            after_revision: the last revision that the subscriber has seen, or 0.
            until_ready: whether to end when no export is in progress.

        Raises:
            Refused: REVISION_UNKNOWN, SERVER_SHUTDOWN; and what the store raises, if the store is unavailable at the
                beginning or when a keep-alive is due.
        """
        hub = self._join(cell)
        try:
            record = await hub.refresh(since=time.monotonic())
            if not 0 <= after_revision <= record.revision:
                raise Refused(Refusal.REVISION_UNKNOWN)
            sent_revision = after_revision
            while True:
                yield WatchUpdate(record, changed=record.revision > sent_revision)
                if until_ready and record.export is None:
                    return
                sent_revision = record.revision
                record = hub.newest if hub.newest.revision > sent_revision else await self._next(hub)
        finally:
            self._leave(cell, hub)

    async def _next(self, hub: CellHub) -> CellRecord:
        """Return the next record, or the same record again when a keep-alive is due."""
        if self._closing:
            raise Refused(Refusal.SERVER_SHUTDOWN)
        # Spread the keep-alives of watches that were opened together.
        seconds = self._keepalive_seconds * random.uniform(0.8, 1.0)  # noqa: S311 - not a secret
        changed = await hub.wait_for_change(seconds)
        if self._closing:
            raise Refused(Refusal.SERVER_SHUTDOWN)
        return hub.newest if changed else await hub.refresh(since=time.monotonic() - _FRESH_SECONDS)

    def _join(self, cell: str) -> CellHub:
        hub = self._hubs.get(cell)
        if hub is None:
            hub = self._hubs[cell] = CellHub(cell, self._store, self._repository, self._slots, self._on_unavailable)
        hub.subscribers += 1
        return hub

    def _leave(self, cell: str, hub: CellHub) -> None:
        hub.subscribers -= 1
        if not hub.subscribers:
            del self._hubs[cell]
            self._waiting.discard(hub)
            hub.close()

    def _on_unavailable(self, hub: CellHub) -> None:
        self._waiting.add(hub)
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Check the store until it is available and not in doubt. Then refresh all hubs that wait for the store."""
        while self._waiting:
            await asyncio.sleep(_RECOVERY_SECONDS)
            try:
                await self._store.check()
                doubt = await self._store.doubt()
            except Refused:
                continue
            except Exception:
                # The checks must go on: otherwise the hubs would wait for ever.
                _log.exception("unexpected error while checking whether the store is available again")
                continue
            if doubt is None:
                waiting, self._waiting = self._waiting, set()
                for hub in waiting:
                    hub.request_refresh()
        self._recovery = None
