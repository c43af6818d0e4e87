"""The rules of exports, one pure function each: from a cell's record to its successor, or None to write nothing.

Several servers may compute a successor of the same record. The first to write it wins.
"""

import hmac
import re
from dataclasses import replace

from cellexport import request_key
from server.exports.lease import LeaseProof, renew
from server.exports.model import CellRecord, Export, Outcome, Phase, Progress, Reason, Result, Trust
from server.refusals import Refusal, Refused

SNAPSHOT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,192}", re.ASCII)

# The largest count that a report may contain.
_LARGEST = 2**60
# The form of an export's id. It is checked in a lease that restores a lost export, because no record is left to compare
# the lease with.
_EXPORT_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
# The latest start of an export that such a lease may state: the end of the year 9999, in milliseconds since 1970.
_LATEST = 253_402_300_799_000


def accept(record: CellRecord, export: Export) -> CellRecord:
    """Queue an export. Raise `Refused` with ALREADY_EXPORTING if the cell has an export in progress."""
    if record.export is not None:
        raise Refused(Refusal.ALREADY_EXPORTING)
    return replace(record, export=export)


def claim(record: CellRecord, export_id: str, request_id: str, token_hash: str) -> CellRecord | None:
    """Give a queued export to an exporter. Return None if it has ended or another exporter has claimed it.

    The same request may claim the export again: the first response may have been lost.
    """
    export = record.export
    if export is None or export.export_id != export_id:
        return None
    if export.phase is Phase.CLAIMED and export.request_id == request_id:
        return replace(record, export=replace(export, token_hash=token_hash))
    if export.phase is not Phase.QUEUED:
        return None
    # The epoch is a revision, and a revision is never used twice, even if the store loses writes.
    epoch = record.revision + 1
    claimed = replace(export, phase=Phase.CLAIMED, epoch=epoch, request_id=request_id, token_hash=token_hash)
    return replace(record, epoch=epoch, export=claimed)


def release(record: CellRecord, proof: LeaseProof) -> CellRecord | None:
    """Queue an export again, because its exporter left before it received the response to its claim."""
    export = record.export
    if export is None or not _is_live(export, proof) or export.token_hash != proof.token_hash:
        return None
    return replace(record, export=_unclaimed(export))


def give_back(record: CellRecord, request_id: str) -> CellRecord | None:
    """Queue an export again if it was claimed by that request and no report on it has arrived."""
    export = record.export
    if export is None or export.phase is not Phase.CLAIMED or export.request_id != request_id or export.sequence:
        return None
    return replace(record, export=_unclaimed(export))


def report(record: CellRecord, proof: LeaseProof, sequence: int, progress: Progress) -> CellRecord | None:
    """Renew the lease and record the progress. The percent never falls.

    A report changes nothing if its sequence number is not above that of the latest report.

    Raises:
        Refused: PROGRESS_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
    """
    if sequence < 1 or sequence > _LARGEST or not _is_possible(progress):
        raise Refused(Refusal.PROGRESS_INVALID)
    export = _held_export(record, proof)
    if sequence <= export.sequence:
        return None
    percent = max(export.percent, progress.percent)
    stalled = export.stalled and progress == export.progress
    advanced = replace(export, percent=percent, progress=progress, stalled=stalled)
    return replace(record, export=renew(advanced, sequence))


def restore(record: CellRecord, proof: LeaseProof) -> CellRecord | None:
    """Return the record with the export of this lease, if the store has lost that export, or else None.

    The lease must be newer than every lease in the record, and older than the moment in which the store lost writes.
    """
    ended = record.last_outcome is not None and record.last_outcome.export_id == proof.export_id
    lost = record.epoch < proof.epoch < record.revision
    if record.trust is Trust.SURE or ended or not lost or not _restorable(proof):
        return None
    export = Export(
        export_id=proof.export_id,
        name=proof.name,
        request_key=proof.request_key,
        accepted_at=proof.accepted_at,
        phase=Phase.CLAIMED,
        epoch=proof.epoch,
        token_hash=proof.token_hash,
    )
    return replace(record, epoch=proof.epoch, export=export)


def cancel(record: CellRecord, name: str | None) -> CellRecord | None:
    """Mark an export as cancelled. A queued export becomes EXPIRING at once, so that the server ends it.

    The exporter of a claimed export is asked to end it by the response to its next report.

    Args:
        name: the snapshot whose export the caller wants to cancel, or None for any.

    Raises:
        Refused: NOT_EXPORTING
    """
    export = record.export
    if export is None or (name is not None and name != export.name):
        raise Refused(Refusal.NOT_EXPORTING)
    if export.cancelled or export.phase is Phase.EXPIRING:
        return None
    phase = Phase.EXPIRING if export.phase is Phase.QUEUED else export.phase
    return replace(record, export=replace(export, cancelled=True, phase=phase))


def stall(record: CellRecord) -> CellRecord | None:
    """Mark a claimed export as stalled."""
    export = record.export
    if export is None or export.phase is not Phase.CLAIMED or export.stalled:
        return None
    return replace(record, export=replace(export, stalled=True))


def finish(record: CellRecord, proof: LeaseProof, result: Result, reason: Reason | None, now: int) -> CellRecord | None:
    """End an export on behalf of its exporter. Return None if it has already ended with that result.

    Raises:
        Refused: OUTCOME_INVALID, EXPORT_NOT_FOUND, LEASE_LOST, LEASE_NOT_HELD
    """
    if (reason is None) != (result is Result.SUCCEEDED) or (reason is not None and reason.result is not result):
        raise Refused(Refusal.OUTCOME_INVALID)
    last = record.last_outcome
    if record.export is None and last is not None and _is_of(last, proof) and last.result is result:
        return None
    _held_export(record, proof)
    return end(record, result, reason, now)


def expire(record: CellRecord) -> CellRecord | None:
    """Make an overdue export EXPIRING, so that every further report on it is refused."""
    export = record.export
    if export is None or export.phase is Phase.EXPIRING:
        return None
    return replace(record, export=replace(export, phase=Phase.EXPIRING))


def end(record: CellRecord, result: Result, reason: Reason | None, now: int) -> CellRecord | None:
    """End the export in progress: it becomes the record's last outcome. `now` is in milliseconds since 1970."""
    export = record.export
    if export is None:
        return None
    outcome = Outcome(
        export_id=export.export_id,
        name=export.name,
        epoch=export.epoch,
        token_hash=export.token_hash,
        result=result,
        reason=reason,
        ended_at=now,
    )
    return replace(record, export=None, last_outcome=outcome)


def _is_possible(progress: Progress) -> bool:
    pairs = (
        (progress.work_done, progress.work_total),
        (progress.entries_done, progress.entries_total),
        (progress.bytes_done, progress.bytes_total),
    )
    return all(0 <= done <= (total or _LARGEST) and 0 <= total <= _LARGEST for done, total in pairs)


def _restorable(proof: LeaseProof) -> bool:
    return bool(
        _EXPORT_ID.fullmatch(proof.export_id)
        and SNAPSHOT_NAME.fullmatch(proof.name)
        and request_key.is_valid(proof.request_key)
        and 0 < proof.accepted_at <= _LATEST
    )


def _held_export(record: CellRecord, proof: LeaseProof) -> Export:
    """Return the export in progress, if the proof is of its current lease. Raise `Refused` otherwise."""
    export, last = record.export, record.last_outcome
    if export is not None and export.export_id == proof.export_id:
        if not _is_live(export, proof):
            raise Refused(Refusal.LEASE_LOST)
        if not _same(export.token_hash, proof.token_hash):
            raise Refused(Refusal.LEASE_NOT_HELD)
        return export
    if last is not None and last.export_id == proof.export_id:
        raise Refused(Refusal.LEASE_LOST)
    raise Refused(Refusal.EXPORT_NOT_FOUND)


def _is_live(export: Export, proof: LeaseProof) -> bool:
    same = export.export_id == proof.export_id and export.epoch == proof.epoch
    return same and export.phase is Phase.CLAIMED


def _unclaimed(export: Export) -> Export:
    """Return the export without an exporter: queued, or EXPIRING if it was cancelled."""
    phase = Phase.EXPIRING if export.cancelled else Phase.QUEUED
    return replace(export, phase=phase, epoch=0, request_id="", token_hash="", sequence=0, stalled=False)


def _is_of(outcome: Outcome, proof: LeaseProof) -> bool:
    same = outcome.export_id == proof.export_id and outcome.epoch == proof.epoch
    return same and _same(outcome.token_hash, proof.token_hash)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
