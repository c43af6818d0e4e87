"""Sample records of cells."""

from server.exports.model import CellRecord, Export, Outcome, Phase, Progress, Reason, Result

ACCEPTED_AT = 1486976400000


def following(record: CellRecord, accepted_at: int = ACCEPTED_AT) -> CellRecord:
    """Return the next record of a cell, with a queued export."""
    export = Export(export_id="ab12", name="snap", request_key="key", accepted_at=accepted_at)
    return CellRecord(cell=record.cell, revision=record.revision + 1, updated_at=accepted_at, export=export)


def full(record: CellRecord) -> CellRecord:
    """Return the next record of a cell, with a value in every field."""
    progress = Progress(
        work_done=81, work_total=100, entries_done=3, entries_total=4, bytes_done=2**40, bytes_total=2**41
    )
    export = Export(
        export_id="ab12",
        name="snap",
        request_key="key",
        accepted_at=ACCEPTED_AT,
        phase=Phase.CLAIMED,
        epoch=7,
        request_id="request",
        token_hash="hash",
        sequence=9,
        percent=81,
        progress=progress,
        stalled=True,
        cancelled=True,
    )
    outcome = Outcome(
        export_id="cd34",
        name="old",
        epoch=6,
        token_hash="other",
        result=Result.FAILED,
        reason=Reason.NO_SPACE,
        ended_at=ACCEPTED_AT - 1,
    )
    return CellRecord(
        cell=record.cell,
        revision=record.revision + 1,
        updated_at=ACCEPTED_AT + 1,
        epoch=7,
        export=export,
        last_outcome=outcome,
    )


def idle(record: CellRecord) -> CellRecord:
    """Return the next record of a cell, after an export that succeeded."""
    outcome = Outcome(
        export_id="ab12",
        name="snap",
        epoch=7,
        token_hash="hash",
        result=Result.SUCCEEDED,
        reason=None,
        ended_at=ACCEPTED_AT,
    )
    return CellRecord(
        cell=record.cell, revision=record.revision + 1, updated_at=ACCEPTED_AT, epoch=7, last_outcome=outcome
    )
