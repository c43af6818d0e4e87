"""The events that the event log records, and the port (interface) to the event log."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from server.exports.model import Caller, CellRecord, Export, Outcome, Result


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
    """An entry of the event log. `time` is in milliseconds since 1970."""

    time: int
    request_key: str
    caller: Caller
    type: Type
    info: str
    level: Level = Level.INFO


class Events(Protocol):
    """The port to the event log."""

    async def write(self, event: Event) -> None:
        """Accept an event. Wait while too many accepted events are still unwritten."""

    async def close(self) -> None:
        """Write all accepted events. `write` may not be called afterwards."""


class NoEvents:
    """The implementation for an event log that is turned off."""

    async def write(self, event: Event) -> None:
        return

    async def close(self) -> None:
        return


def status(record: CellRecord, *, time: int, request_key: str, caller: Caller) -> Event:
    """Return the event for a status that was returned to a caller."""
    export = record.export
    info = "ready" if export is None else f"exportation in progress {export.percent}% {export.name}"
    return Event(time=time, request_key=request_key, caller=caller, type=Type.STATUS, info=info)


def start(export: Export, caller: Caller) -> Event:
    """Return the event for an accepted export."""
    return Event(
        time=export.accepted_at, request_key=export.request_key, caller=caller, type=Type.START, info=export.name
    )


def end(export: Export, outcome: Outcome, caller: Caller) -> Event:
    """Return the event for an export's end, with the key of the request that started the export."""
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
