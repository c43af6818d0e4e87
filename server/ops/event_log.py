"""The event log, in Personium's layout: one line of CSV for each event.

    {time},[INFO ],"{request key}","{external}","{schema}","{subject}","{type}","{object}","{info}"

A background task writes the lines to the file. Callers put lines into a bounded queue and wait while the queue is full,
so a full queue drops no event. No token, cookie or `p_cookie_peer` is ever written.
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
# Lines are gathered for this long, in seconds, and then written as one batch: waking a thread for each batch costs more
# than writing its lines.
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
    """The event log in a file that is rotated at 50 MiB, with 12 old files kept.

    Open it with `EventLog.open`, and close it after the last event.
    """

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
            lost: called after each batch of events that could not be written, with the number of events in this batch.

        Raises:
            OSError: if the file can't be opened.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(_Handler(path, maxBytes=most_bytes, backupCount=_KEPT, encoding="utf-8"), lost)

    async def write(self, event: Event) -> None:
        await self._lines.put(format_line(event))

    async def flush(self) -> None:
        """Wait until all events that were accepted so far are written or lost."""
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
                _log.exception("events not written to the event log", extra={"events": len(batch)})
                self._lost(len(batch))
            else:
                if self._handler.lost:
                    self._lost(len(batch))
            for _ in batch:
                self._lines.task_done()


class _Handler(RotatingFileHandler):
    """A rotating file. A series of failed writes is logged once, in the server's own log; no caller gets the error."""

    # `_failing`: the latest batch was not written. `_logged`: an error was logged after the latest success.
    _failing = _logged = False
    # Whether the latest batch of events was lost.
    lost = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failing = self.lost = False
        self._reopen_if_gone()
        super().emit(record)
        if self._logged and not self._failing:
            _log.info("event log writable again")
            self._logged = False

    def doRollover(self) -> None:  # noqa: N802 - the name that logging calls
        """Rotate the file. If that fails, the file keeps growing."""
        try:
            super().doRollover()
        except OSError as error:
            self._log_once(error)
            self.stream = self.stream or self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        self.lost = True
        self._log_once(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._log_once(error)

    def _reopen_if_gone(self) -> None:
        """If the file was removed or renamed, close it, so that the next write opens a new file."""
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

    def _log_once(self, error: BaseException | None) -> None:
        if not self._logged:
            _log.error("event log not writable", extra={"error": str(error)})
        self._failing = self._logged = True
