"""What the server knows of a cell's export. Plain values; times are milliseconds since 1970, in UTC."""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class Phase(StrEnum):
    """How far an export has come."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    # Its lease has run out: reports are refused, and what the exporter left behind is being looked at.
    EXPIRING = "expiring"


class Result(StrEnum):
    """How an export ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Reason(StrEnum):
    """Why an export left no snapshot. Each goes with one result."""

    NO_SPACE = "no_space"
    NAME_TAKEN = "name_taken"
    SOURCE_UNREADABLE = "source_unreadable"
    SOURCE_CHANGED = "source_changed"
    SNAPSHOT_UNWRITABLE = "snapshot_unwritable"
    INTERNAL = "internal"
    LEASE_EXPIRED = "lease_expired"
    SHUTDOWN = "shutdown"
    QUEUE_TIMEOUT = "queue_timeout"
    CANCELLED = "cancelled"

    @property
    def result(self) -> Result:
        return Result.INTERRUPTED if self in _INTERRUPTIONS else Result.FAILED


_INTERRUPTIONS = frozenset({Reason.LEASE_EXPIRED, Reason.SHUTDOWN, Reason.QUEUE_TIMEOUT, Reason.CANCELLED})


def told(result: Result, reason: Reason | None) -> dict[str, str]:
    """An end in the words of the log. The reason is empty for a success."""
    return {"result": result.name, "reason": "" if reason is None else reason.name}


class Trust(Enum):
    """How far a record can be believed."""

    # It is the truth.
    SURE = auto()
    # The store has lost writes, or all of them, and this was written since. It is the truth, unless an exporter with a
    # newer lease is still to be heard.
    RESTORED = auto()
    # The store has lost writes, or all of them, and nothing was heard since: the truth may be newer.
    DOUBTFUL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What an exporter reports. A total of 0 is one that is not known yet."""

    work_done: int = 0
    work_total: int = 0
    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    @property
    def percent(self) -> int:
        """Whole percent, rounded down, at most 99: 100 would mean that the snapshot is there."""
        return min(99, self.work_done * 100 // self.work_total) if self.work_total else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export under way."""

    export_id: str
    name: str
    request_key: str
    accepted_at: int
    phase: Phase = Phase.QUEUED
    # Of the lease: nothing while queued. Only the hash of its token is kept.
    epoch: int = 0
    request_id: str = ""
    token_hash: str = ""
    sequence: int = 0
    percent: int = 0
    progress: Progress = Progress()
    # The exporter reports, and nothing moves.
    stalled: bool = False
    # Somebody wants it to end.
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an export ended, and of which lease that was."""

    export_id: str
    name: str
    epoch: int
    token_hash: str
    result: Result
    reason: Reason | None
    ended_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """All that is known of one cell's exports.

    `revision` rises by one with every write; `epoch` is the highest that a claim of this cell was given, and that is
    the revision which the claim made. `trust` is not kept: the store says it of what it reads.
    """

    cell: str
    revision: int = 0
    updated_at: int = 0
    epoch: int = 0
    export: Export | None = None
    last_outcome: Outcome | None = None
    trust: Trust = Trust.SURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call, as the event log names callers. The unit itself has neither."""

    schema: str | None = None
    subject: str | None = None
