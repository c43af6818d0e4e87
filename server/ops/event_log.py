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
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from server import tasks
from server.exports.events import Event

_OBJECT = "personium-localcell:/__export"
_LONGEST_QUEUE = 4096
# A thread is woken for each batch, and that costs more than all else: so a batch has time to grow.
_GATHER_SECONDS = 0.02
_MOST_BYTES = 50 * 1024 * 1024
_KEPT = 12

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_log = logging.getLogger(__name__)


def format_line(event: Event) -> str:
    """Return an event as a line of CSV in Personium's layout, without the newline."""
    when = datetime.fromtimestamp(event.time / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    who = event.caller
    fields = (event.request_key, "false", who.schema, who.subject, event.type.value, _OBJECT, event.info)
    return ",".join((when, event.level.value, *map(_quoted, fields)))


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
        await self._lines.put(format_line(event))

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
