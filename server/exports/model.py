"""The state of a cell's exports, as plain values. Times are milliseconds since 1970, in UTC."""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from cellexport.outcomes import INTERRUPTIONS


class Phase(StrEnum):
    """The stage of an export in progress."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    # The lease has expired, or the export was cancelled in the queue. Reports are refused, and the server checks
    # whether the exporter had published before.
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
    """Return the log fields of an export's end. `reason` is empty for a success."""
    return {"result": result.name, "reason": "" if reason is None else reason.name}


class Trust(Enum):
    """How far a record can be trusted after the store has lost writes."""

    # The record is the truth.
    SURE = auto()
    # The record was written after the loss. It is the truth, unless an exporter with a newer lease has yet to report.
    RESTORED = auto()
    # The record was written before the loss, and no exporter has reported since. The truth may be newer.
    DOUBTFUL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress that an exporter reports. A total of 0 is not known yet.

    Work is counted in the exporter's own unit.
    """

    work_done: int = 0
    work_total: int = 0
    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    @property
    def percent(self) -> int:
        """Return the whole percent, rounded down. At most 99: clients take 100 for a published snapshot."""
        return min(99, self.work_done * 100 // self.work_total) if self.work_total else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export in progress: queued, claimed or expiring."""

    export_id: str
    name: str
    request_key: str
    accepted_at: int
    phase: Phase = Phase.QUEUED
    # The lease: empty while queued. Only the hashes of its token and of the claim's id are kept.
    epoch: int = 0
    request_id: str = ""
    token_hash: str = ""
    sequence: int = 0
    percent: int = 0
    progress: Progress = Progress()
    # The exporter reports, but nothing moves.
    stalled: bool = False
    # A caller has asked for the export's end.
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of an export, and the lease that it had."""

    export_id: str
    name: str
    epoch: int
    token_hash: str
    result: Result
    reason: Reason | None
    ended_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """The record of one cell's exports.

    `revision` rises by one with every write. `epoch` is the highest epoch that a claim of this cell was given: the
    revision that the claim wrote. `trust` is not stored: the store adds it to each record that it reads.
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
