"""The state of a cell's exports, as plain values. Times are milliseconds since 1970, in UTC."""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from cellexport.outcomes import INTERRUPTIONS


class Phase(StrEnum):
    """The stage of an export in progress."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    # The lease or the time in the queue has expired, or the export was cancelled. The server refuses further reports,
    # and checks whether the exporter has already published the snapshot.
    EXPIRING = "expiring"


class Result(StrEnum):
    """The result of an export that has ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Reason(StrEnum):
    """The reason why an export left no snapshot. Each reason implies one result."""

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
        """Return the result that this reason implies: INTERRUPTED or FAILED."""
        return Result.INTERRUPTED if self.name in INTERRUPTIONS else Result.FAILED


def outcome_fields(result: Result, reason: Reason | None) -> dict[str, str]:
    """Return the fields `result` and `reason` for a log line about an export's end. A success has an empty reason."""
    return {"result": result.name, "reason": "" if reason is None else reason.name}


class Trust(Enum):
    """The trust in a record that was read from a store. A store may lose writes, for example when Redis restarts."""

    # The record is the cell's newest state: the store has lost no write, or every living exporter has reported since.
    SURE = auto()
    # The record was written after the store lost writes. It is the cell's newest state, unless an exporter with a newer
    # lease has not reported since the loss.
    RESTORED = auto()
    # The record was written before the store lost writes, and no exporter has reported since. The store may have lost a
    # newer state of the cell.
    DOUBTFUL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress that an exporter reports. A total of 0 means that the total is not known yet.

    `work_done` and `work_total` are in a unit that the exporter chooses.
    """

    work_done: int = 0
    work_total: int = 0
    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    @property
    def percent(self) -> int:
        """Return the work done in whole percent, rounded down. At most 99: clients take 100 as published."""
        return min(99, self.work_done * 100 // self.work_total) if self.work_total else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export in progress: queued, claimed or expiring."""

    export_id: str
    name: str
    request_key: str
    accepted_at: int
    phase: Phase = Phase.QUEUED
    # The lease; 0 or empty while the export is queued. `epoch` is the lease's number, and `sequence` the number of the
    # latest report. `request_id` and `token_hash` are hashes of the claim's id and of the lease's token.
    epoch: int = 0
    request_id: str = ""
    token_hash: str = ""
    sequence: int = 0
    percent: int = 0
    progress: Progress = Progress()
    # The exporter reports, but its reports have shown no progress for four leases.
    stalled: bool = False
    # A caller has cancelled the export, which has not ended yet.
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result and the reason of an export that has ended, and the exporter's lease."""

    export_id: str
    name: str
    epoch: int
    token_hash: str
    result: Result
    reason: Reason | None
    ended_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """The record of one cell's exports: the export in progress, if there is one, and the end of the previous one.

    `revision` rises by one with every write. `epoch` is the number of the newest lease that a claim of this cell was
    given: the revision that the claim wrote. `trust` is not stored: the store adds it to each record that it reads.
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
    """The caller as the event log names it. The unit itself has neither schema nor subject."""

    schema: str | None = None
    subject: str | None = None
