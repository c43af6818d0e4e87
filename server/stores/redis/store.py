"""The store that several servers share: a Redis, 7 or newer, or what speaks as it does.

Every step is a script (see `redis_scripts`), so it is atomic, whoever else writes. Nothing is remembered here but the
mark: every read asks Redis. An operation that isn't answered within its budget is refused.
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
from server.stores.redis import encoding
from server.stores.redis import scripts as scripts
from server.stores.redis.client import connect
from server.stores.redis.listener import listen
from server.stores.redis.place import RedisPlace

_BUDGET_SECONDS = 1.0
_MOST_CONNECTIONS = 32
# A mark may be made anew in between, but not again and again.
_MOST_MARKS = 3
_MOST_TOLD = 100
_NOTES: dict[type[Exception], str] = {
    exceptions.AuthenticationError: "Redis refuses the user or the password: correct them",
    exceptions.NoPermissionError: "Redis doesn't let its user do what is needed: docs/redis.md says what that is",
    exceptions.BusyLoadingError: "Redis is still loading",
    exceptions.TimeoutError: "Redis did not answer within a second: does it run, and speak TLS if it is spoken to so?",
    TimeoutError: "Redis did not answer within a second: does it run, and speak TLS if it is spoken to so?",
    exceptions.ConnectionError: "Redis can't be reached: does it run, and is it where CELLEXPORT_STORE says?",
}
# How Redis begins any other error.
_ERROR_CODE = re.compile(r"[A-Z]{2,30}\b")

_log = logging.getLogger(__name__)


class RedisStore:
    """The port `Store` on Redis. Open it with `RedisStore.open`."""

    def __init__(self, place: RedisPlace, clock: Callable[[], int]) -> None:
        self._client = connect(place, self._greet)
        self._clock = clock
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._floor = 0
        self._settled = False
        self._policy = ""
        self._changes = Changes()
        # Of the latest list: what was stored of each cell, and what that means.
        self._decoded: dict[str, tuple[bytes, CellRecord]] = {}
        self._told_damaged: set[str] = set()
        self._read = self._client.register_script(scripts.READ)
        self._replace = self._client.register_script(scripts.REPLACE)
        self._list = self._client.register_script(scripts.LIST)
        self._settle = self._client.register_script(scripts.SETTLE)
        self._begin = self._client.register_script(scripts.BEGIN)
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, place: RedisPlace, clock: Callable[[], int]) -> "RedisStore":
        """Begin to use it. One that can't be reached now may be later; one that is set up wrong is not waited for.

        Args:
            clock: milliseconds since 1970.

        Raises:
            StoreError: if it refuses our credentials, or throws keys away when memory is short.
        """
        store = cls(place, clock)
        try:
            await store.check()
        except Refused as refused:
            cause = refused.__cause__
            if store._policy_is_bad() or isinstance(
                cause, exceptions.AuthenticationError | exceptions.NoPermissionError
            ):
                await store._client.aclose()
                raise StoreError(f"CELLEXPORT_STORE: {place}: {refused.note}.") from refused
            _log.error("Redis can't be used yet", extra={"redis": str(place), "note": refused.note})
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
        words = [record.cell, record.revision, data, accepted_at, "queued" if queued else ""]
        # The last says whether it is done for the second time, as the first one's answer was lost.
        (written,) = await self._run(self._replace, keys, [*words, "0"], again=[*words, "1"])
        return bool(written)

    async def underway(self) -> Sequence[CellRecord]:
        found = await self._run(self._list, [scripts.MARK, scripts.UNDERWAY], [])
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        # Most are as they were a moment ago: they need not be decoded again.
        before, self._decoded = self._decoded, {}
        records = []
        for name, revision, data in triples:
            cell = name.decode()
            try:
                known = before.get(cell)
                stored = known if known and known[0] == data else (data, encoding.decode(cell, 0, data))
            except ValueError as error:
                self._say_damaged(cell, error)
                continue
            self._decoded[cell] = stored
            records.append(self._placed(stored[1], int(revision)))
        return records

    def changes(self, topic: str) -> AbstractContextManager[asyncio.Event]:
        return self._changes.of(topic)

    async def check(self) -> None:
        self._learn(await self._ask(self._begin, [scripts.MARK], [self._clock(), self._floor]))
        if self._policy_is_bad():
            raise Refused(
                Refusal.STORE_UNAVAILABLE,
                note=f"its maxmemory-policy is {self._policy}, which throws keys away: set it to noeviction",
            )

    async def doubt(self) -> int | None:
        return None if self._settled else self._floor

    async def settle(self, doubt: int) -> None:
        # Asked for once, and for that doubt: the mark may be another by now, and nobody was heard in that doubt yet.
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
        """Look at the mark before a new connection is used: it may lead to another Redis than the last."""
        await connection.send_command("EVAL", scripts.BEGIN, 1, scripts.MARK, self._clock(), self._floor)
        self._learn(await connection.read_response())

    def _learn(self, mark: Any) -> None:
        floor, settled, policy = int(mark[0]), mark[1] == b"1", mark[2].decode()
        known = self._floor, self._settled
        if floor < self._floor:
            # What was asked before, and answered late.
            return
        self._floor, self._settled, self._policy = floor, settled, policy
        if known != (self._floor, self._settled):
            self._changes.tell_all()

    def _policy_is_bad(self) -> bool:
        return self._policy not in ("", "noeviction")

    def _record(self, cell: str, revision: bytes | None, data: bytes | None) -> CellRecord:
        if revision is None or data is None:
            return self._placed(CellRecord(cell=cell), 0)
        try:
            return self._placed(encoding.decode(cell, 0, data), int(revision))
        except ValueError as error:
            raise Refused(Refusal.DATA_DAMAGED, note=f"{scripts.cell_key(cell)}: {error}") from error

    def _placed(self, record: CellRecord, revision: int) -> CellRecord:
        """A record at its revision, and as far as it can be believed."""
        if revision > self._floor:
            return replace(record, revision=revision, trust=Trust.SURE if self._settled else Trust.RESTORED)
        return replace(record, revision=self._floor, trust=Trust.SURE if self._settled else Trust.DOUBTFUL)

    def _say_damaged(self, cell: str, error: ValueError) -> None:
        """One that can't be read costs the others nothing; it is said once."""
        if cell not in self._told_damaged and len(self._told_damaged) < _MOST_TOLD:
            self._told_damaged.add(cell)
            _log.error("a record in Redis is damaged", extra={"key": scripts.cell_key(cell), "error": str(error)})

    async def _run(
        self, script: AsyncScript, keys: list[str], words: list[Any], *, again: list[Any] | None = None
    ) -> list[Any]:
        """What a script returns that begins with the mark."""
        if self._policy_is_bad():
            await self.check()
        for _ in range(_MOST_MARKS):
            floor = str(self._floor)
            state, *found = await self._ask(script, keys, [floor, *words], again=[floor, *(again or words)])
            if state == b"mark":
                await self.check()
            elif state == b"damaged":
                raise Refused(Refusal.STORE_UNAVAILABLE, note="a record is missing in Redis")
            elif state == b"unknown":
                raise Refused(Refusal.STORE_UNAVAILABLE)
            elif floor == str(self._floor):
                self._settled = found[0] == b"1"
                return found[1:]
        raise Refused(Refusal.STORE_UNAVAILABLE, note="the mark in Redis changes again and again")

    async def _ask(
        self, script: AsyncScript, keys: list[str], words: list[Any], *, again: list[Any] | None = None
    ) -> list[Any]:
        """What a script returns, within the budget. Raises `Refused`."""
        try:
            async with asyncio.timeout(_BUDGET_SECONDS), self._room:
                try:
                    return list(await script(keys=keys, args=words))
                except exceptions.ConnectionError as error:
                    if isinstance(error, exceptions.AuthenticationError | exceptions.BusyLoadingError):
                        raise
                    # An idle connection may have died unnoticed, and a primary may have been followed by another.
                    return list(await script(keys=keys, args=again or words))
        except (TimeoutError, exceptions.RedisError, OSError) as error:
            raise Refused(_refusal(error), note=_note(error)) from error


def _refusal(error: Exception) -> Refusal:
    return Refusal.NO_SPACE if isinstance(error, exceptions.OutOfMemoryError) else Refusal.STORE_UNAVAILABLE


def _note(error: Exception) -> str:
    """What is wrong, in our own words: an error of Redis may hold our command, and with it a password."""
    for kind, words in _NOTES.items():
        if isinstance(error, kind):
            return words
    code = _ERROR_CODE.match(str(error))
    return f"Redis refuses: {code[0] if code else type(error).__name__}"
