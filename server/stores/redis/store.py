"""The store that several servers share: Redis 7 or newer, or a server with the same protocol.

Every operation is one atomic script (see `scripts`). Only the mark is cached: every read asks Redis. An operation that
takes longer than one second is refused.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from redis import exceptions
from redis.asyncio.connection import AbstractConnection
from redis.commands.core import AsyncScript

from server import tasks
from server.exports.model import CellRecord, Phase, Trust
from server.exports.store import StoreError
from server.refusals import Refusal, Refused
from server.stores.changes import Changes
from server.stores.redis import encoding, scripts
from server.stores.redis.client import connect
from server.stores.redis.listener import listen
from server.stores.redis.place import RedisPlace

_BUDGET_SECONDS = 1.0
_MOST_CONNECTIONS = 32
# How often an operation is tried while new marks keep appearing: one may appear during an operation, but not many.
_MOST_MARKS = 3
# How many damaged records are logged.
_MOST_LOGGED = 100
_NOTES: dict[type[Exception], str] = {
    exceptions.AuthenticationError: "Redis refuses the user or the password: correct them",
    exceptions.NoPermissionError: "Redis denies its user a needed command: docs/redis.md lists them",
    exceptions.BusyLoadingError: "Redis is still loading",
    exceptions.TimeoutError: "Redis did not answer within a second: check that it runs, and whether it expects TLS",
    TimeoutError: "Redis did not answer within a second: check that it runs, and whether it expects TLS",
    exceptions.ConnectionError: "Redis can't be reached: check that it runs at the address in CELLEXPORT_STORE",
}
# The code at the beginning of an error of Redis that is not in `_NOTES`.
_ERROR_CODE = re.compile(r"[A-Z]{2,30}\b")

_log = logging.getLogger(__name__)


class RedisStore:
    """The port `Store` on Redis. Open it with `RedisStore.open`."""

    def __init__(self, place: RedisPlace, clock: Callable[[], int]) -> None:
        self._client = connect(place, self._greet)
        self._clock = clock
        self._connections = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._floor = 0
        self._settled = False
        self._policy = ""
        self._changes = Changes()
        # By cell: the stored bytes and the decoded record, from the latest call of `underway`.
        self._decoded: dict[str, tuple[bytes, CellRecord]] = {}
        self._logged_damaged: set[str] = set()
        self._read = self._client.register_script(scripts.load("read"))
        self._replace = self._client.register_script(scripts.load("replace"))
        self._list = self._client.register_script(scripts.load("list"))
        self._settle = self._client.register_script(scripts.load("settle"))
        self._begin_text = scripts.load("begin")
        self._begin = self._client.register_script(self._begin_text)
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, place: RedisPlace, clock: Callable[[], int]) -> "RedisStore":
        """Open the store. An unreachable Redis is only logged, because it may become available later.

        Args:
            clock: milliseconds since 1970.

        Raises:
            StoreError: if Redis refuses the credentials, or evicts keys when memory runs short.
        """
        store = cls(place, clock)
        try:
            await store.check()
        except Refused as refused:
            cause = refused.__cause__
            if store._evicts_keys() or isinstance(cause, exceptions.AuthenticationError | exceptions.NoPermissionError):
                await store._client.aclose()
                raise StoreError(f"CELLEXPORT_STORE: {place}: {refused.note}.") from refused
            _log.error("Redis unavailable at start", extra={"redis": str(place), "note": refused.note})
        store._listener = asyncio.create_task(listen(store._client, store._changes))
        return store

    async def read(self, cell: str) -> CellRecord:
        keys = [scripts.MARK, scripts.cell_key(cell), scripts.UNDERWAY]
        revision, data = await self._run(self._read, keys, [cell])
        return self._record(cell, revision, data)

    async def replace(self, record: CellRecord) -> bool:
        accepted_at: int | str = "" if record.export is None else record.export.accepted_at
        queued = record.export is not None and record.export.phase is Phase.QUEUED
        keys = [scripts.MARK, scripts.cell_key(record.cell), scripts.UNDERWAY]
        data = encoding.encode(record)
        arguments = [record.cell, record.revision, data, accepted_at, "queued" if queued else ""]
        # The last argument of the retry says that the first try may have written the record.
        (written,) = await self._run(self._replace, keys, [*arguments, "0"], again=[*arguments, "1"])
        return bool(written)

    async def underway(self) -> Sequence[CellRecord]:
        found = await self._run(self._list, [scripts.MARK, scripts.UNDERWAY], [])
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        # Most records haven't changed since the previous call: don't decode them again.
        before, self._decoded = self._decoded, {}
        records = []
        for name, revision, data in triples:
            cell = name.decode()
            try:
                known = before.get(cell)
                stored = known if known and known[0] == data else (data, encoding.decode(cell, 0, data))
            except ValueError as error:
                self._log_damaged(cell, error)
                continue
            self._decoded[cell] = stored
            records.append(self._with_trust(stored[1], int(revision)))
        return records

    def changes(self, cell: str) -> AbstractContextManager[asyncio.Event]:
        return self._changes.of(cell)

    def queue_changes(self) -> AbstractContextManager[asyncio.Event]:
        return self._changes.of_queue()

    async def check(self) -> None:
        self._learn(await self._ask(self._begin, [scripts.MARK], [self._clock(), self._floor]))
        if self._evicts_keys():
            raise Refused(
                Refusal.STORE_UNAVAILABLE,
                note=f"its maxmemory-policy is {self._policy}, which evicts keys: set it to noeviction",
            )

    async def doubt(self) -> int | None:
        return None if self._settled else self._floor

    async def settle(self, doubt: int) -> None:
        # Don't retry with another floor: it means a newer doubt, during which no exporter may have reported yet.
        state, *_ = await self._ask(self._settle, [scripts.MARK], [str(doubt)])
        if state == b"ok" and doubt == self._floor:
            self._settled = True
        await self.check()

    async def close(self) -> None:
        if self._listener is not None:
            await tasks.cancel(self._listener)
        with suppress(exceptions.RedisError, OSError):
            await self._client.aclose()

    async def _greet(self, connection: AbstractConnection) -> None:
        """Read the mark before a new connection is used: it may lead to another Redis."""
        await connection.send_command("EVAL", self._begin_text, 1, scripts.MARK, self._clock(), self._floor)
        self._learn(await connection.read_response())

    def _learn(self, mark: Any) -> None:
        floor, settled, policy = int(mark[0]), mark[1] == b"1", mark[2].decode()
        known = self._floor, self._settled
        if floor < self._floor:
            # This is a late answer to an earlier request: a newer mark is already known.
            return
        self._floor, self._settled, self._policy = floor, settled, policy
        if known != (self._floor, self._settled):
            self._changes.notify_all()

    def _evicts_keys(self) -> bool:
        return self._policy not in ("", "noeviction")

    def _record(self, cell: str, revision: bytes | None, data: bytes | None) -> CellRecord:
        if revision is None or data is None:
            return self._with_trust(CellRecord(cell=cell), 0)
        try:
            return self._with_trust(encoding.decode(cell, 0, data), int(revision))
        except ValueError as error:
            raise Refused(Refusal.DATA_DAMAGED, note=f"{scripts.cell_key(cell)}: {error}") from error

    def _with_trust(self, record: CellRecord, revision: int) -> CellRecord:
        """Return the record with its revision and its trust."""
        if revision > self._floor:
            return replace(record, revision=revision, trust=Trust.SURE if self._settled else Trust.RESTORED)
        return replace(record, revision=self._floor, trust=Trust.SURE if self._settled else Trust.DOUBTFUL)

    def _log_damaged(self, cell: str, error: ValueError) -> None:
        """Log a damaged record once. `underway` leaves it out, so that the other records can still be used."""
        if cell not in self._logged_damaged and len(self._logged_damaged) < _MOST_LOGGED:
            self._logged_damaged.add(cell)
            _log.error("damaged record in Redis", extra={"key": scripts.cell_key(cell), "error": str(error)})

    async def _run(
        self, script: AsyncScript, keys: list[str], arguments: list[Any], *, again: list[Any] | None = None
    ) -> list[Any]:
        """Run a script that compares the known floor with the mark's first, and return its results. Raise `Refused`.

        If the floors differ, read the mark and run the script again. `again` replaces the arguments for a retry on
        another connection.
        """
        if self._evicts_keys():
            await self.check()
        for _ in range(_MOST_MARKS):
            floor = str(self._floor)
            state, *found = await self._ask(script, keys, [floor, *arguments], again=[floor, *(again or arguments)])
            if state == b"mark":
                await self.check()
            elif state == b"damaged":
                raise Refused(Refusal.STORE_UNAVAILABLE, note="a record is missing in Redis")
            elif state == b"unknown":
                raise Refused(Refusal.STORE_UNAVAILABLE)
            elif floor == str(self._floor):
                self._settled = found[0] == b"1"
                return found[1:]
        raise Refused(Refusal.STORE_UNAVAILABLE, note="the mark in Redis keeps changing")

    async def _ask(
        self, script: AsyncScript, keys: list[str], arguments: list[Any], *, again: list[Any] | None = None
    ) -> list[Any]:
        """Run any script within the time limit, and return its results. Raise `Refused`."""
        try:
            async with asyncio.timeout(_BUDGET_SECONDS), self._connections:
                try:
                    return list(await script(keys=keys, args=arguments))
                except exceptions.ConnectionError as error:
                    if isinstance(error, exceptions.AuthenticationError | exceptions.BusyLoadingError):
                        raise
                    # Retry once: an idle connection may have broken, or another primary may have taken over.
                    return list(await script(keys=keys, args=again or arguments))
        except (TimeoutError, exceptions.RedisError, OSError) as error:
            raise Refused(_refusal(error), note=_note(error)) from error


def _refusal(error: Exception) -> Refusal:
    return Refusal.NO_SPACE if isinstance(error, exceptions.OutOfMemoryError) else Refusal.STORE_UNAVAILABLE


def _note(error: Exception) -> str:
    """Return a fixed text for an error: the error's own text may contain the command, and with it a password."""
    for kind, note in _NOTES.items():
        if isinstance(error, kind):
            return note
    code = _ERROR_CODE.match(str(error))
    return f"Redis refuses: {code[0] if code else type(error).__name__}"
