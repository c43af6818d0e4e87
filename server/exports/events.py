"""The event log, in the layout that Personium's users know: one line of CSV an event.

    {time},[INFO ],"{request key}","{external}","{schema}","{subject}","{type}","{object}","{info}"

It is written off the request's path: callers leave lines in a bounded queue, and wait where that is full, so nothing is
dropped. No token, cookie or peer is ever written.
"""

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol

from server import tasks
from server.exports.model import Caller, CellRecord, Export, Outcome, Result

_OBJECT = "personium-localcell:/__export"
_LONGEST_QUEUE = 4096
# A thread is woken for each batch, and that costs more than all else: so a batch has time to grow.
_GATHER_SECONDS = 0.02
_MOST_BYTES = 50 * 1024 * 1024
_KEPT = 12

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_log = logging.getLogger(__name__)


class Level(Enum):
    INFO = "[INFO ]"
    WARN = "[WARN ]"
    ERROR = "[ERROR]"


class Type(Enum):
    STATUS = "cell.export.status"
    START = "cell.export.start"
    FINISHED = "cell.export"
    FAILED = "cell.export.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `time` is milliseconds since 1970."""

    time: int
    request_key: str
    caller: Caller
    type: Type
    info: str
    level: Level = Level.INFO

    def line(self) -> str:
        when = datetime.fromtimestamp(self.time / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        who = self.caller
        fields = (self.request_key, "false", who.schema, who.subject, self.type.value, _OBJECT, self.info)
        return ",".join((when, self.level.value, *map(_quoted, fields)))


class Events(Protocol):
    """Where events go."""

    async def write(self, event: Event) -> None:
        """Take an event; waits where too many are on their way."""

    async def close(self) -> None:
        """Bring the events that were taken to where they go. None may be written after it."""


class NoEvents:
    """The event log that is off."""

    async def write(self, event: Event) -> None:
        return

    async def close(self) -> None:
        return


def status(record: CellRecord, *, time: int, request_key: str, caller: Caller) -> Event:
    """A status was given."""
    export = record.export
    info = "ready" if export is None else f"exportation in progress {export.percent}% {export.name}"
    return Event(time=time, request_key=request_key, caller=caller, type=Type.STATUS, info=info)


def start(export: Export, caller: Caller) -> Event:
    """An export was accepted."""
    return Event(
        time=export.accepted_at, request_key=export.request_key, caller=caller, type=Type.START, info=export.name
    )


def end(export: Export, outcome: Outcome, caller: Caller) -> Event:
    """An export is over. It has the key of the request that started it."""
    succeeded = outcome.reason is None
    return Event(
        time=outcome.ended_at,
        request_key=export.request_key,
        caller=caller,
        type=Type.FINISHED if succeeded else Type.FAILED,
        info=outcome.name if outcome.reason is None else f"{outcome.name} {outcome.reason.name}",
        level=_LEVELS[outcome.result],
    )


_LEVELS = {Result.SUCCEEDED: Level.INFO, Result.FAILED: Level.ERROR, Result.INTERRUPTED: Level.WARN}


def _quoted(field: str | None) -> str:
    if field is None:
        return "null"
    return '"' + _CONTROL.sub(_escaped, field).replace('"', '""') + '"'


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()


class EventLog:
    """The event log in a file, rotated by size. Open it with `EventLog.open`, and close it after the last event."""

    def __init__(self, handler: "_Handler", lost: Callable[[int], object]) -> None:
        self._handler = handler
        self._lost = lost
        self._lines: asyncio.Queue[str] = asyncio.Queue(_LONGEST_QUEUE)
        self._writer = asyncio.create_task(self._write_all())

    @classmethod
    async def open(
        cls, path: Path, *, most_bytes: int = _MOST_BYTES, lost: Callable[[int], object] = bool
    ) -> "EventLog":
        """Open the file for appending.

        Args:
            lost: called, from any thread, with how many events could not be written.

        Raises:
            OSError: if that can't be done.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(_Handler(path, maxBytes=most_bytes, backupCount=_KEPT, encoding="utf-8"), lost)

    async def write(self, event: Event) -> None:
        await self._lines.put(event.line())

    async def flush(self) -> None:
        """Wait until all events so far are in the file."""
        await self._lines.join()

    async def close(self) -> None:
        await self.flush()
        await tasks.cancel(self._writer)
        self._handler.close()

    async def _write_all(self) -> None:
        while True:
            batch = [await self._lines.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while not self._lines.empty():
                batch.append(self._lines.get_nowait())
            record = logging.makeLogRecord({"msg": "\n".join(batch)})
            try:
                await asyncio.to_thread(self._handler.handle, record)
            except Exception:
                _log.exception("events were lost", extra={"events": len(batch)})
                self._lost(len(batch))
            else:
                if self._handler.lost:
                    self._lost(len(batch))
            for _ in batch:
                self._lines.task_done()


class _Handler(RotatingFileHandler):
    """Whatever happens to the file: it is told once in the application log, and stops nobody."""

    # Whether the latest line was in trouble, and whether that was told.
    _failing = _said = False
    # Whether it was lost.
    lost = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failing = self.lost = False
        self._reopen_if_gone()
        super().emit(record)
        if self._said and not self._failing:
            _log.info("the event log can be written again")
            self._said = False

    def doRollover(self) -> None:  # noqa: N802 - the name that logging calls
        """A file that can't be put aside grows on."""
        try:
            super().doRollover()
        except OSError as error:
            self._say(error)
            self.stream = self.stream or self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        self.lost = True
        self._say(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._say(error)

    def _reopen_if_gone(self) -> None:
        """A file that somebody removed or put aside is made anew."""
        stream = self.stream
        if stream is None:
            return
        try:
            gone = not os.path.samestat(os.stat(self.baseFilename), os.fstat(stream.fileno()))
        except OSError:
            gone = True
        if gone:
            with suppress(OSError):
                stream.close()
            self.stream = None

    def _say(self, error: BaseException | None) -> None:
        if not self._said:
            _log.error("the event log can't be written", extra={"error": str(error)})
        self._failing = self._said = True
