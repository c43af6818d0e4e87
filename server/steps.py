"""The rules, one function each: from a record to the next, or None where nothing has to be written.

They are pure: whether a step is taken is decided by whoever writes the record first.
"""

import hmac
from dataclasses import replace

from server.errors import Refusal, Refused
from server.model import CellRecord, Export, LeaseProof, Outcome, Phase, Progress, Reason, Result

_LARGEST = 2**60


def accept(record: CellRecord, export: Export) -> CellRecord:
    if record.export is not None:
        raise Refused(Refusal.ALREADY_EXPORTING)
    return replace(record, export=export)


def claim(record: CellRecord, export_id: str, request_id: str, token_hash: str) -> CellRecord | None:
    """Give the export to an exporter, unless another has it meanwhile. The same request may claim it again."""
    export = record.export
    if export is None or export.export_id != export_id:
        return None
    if export.phase is Phase.CLAIMED and export.request_id == request_id:
        return replace(record, export=replace(export, token_hash=token_hash))
    if export.phase is not Phase.QUEUED:
        return None
    epoch = record.epoch + 1
    claimed = replace(export, phase=Phase.CLAIMED, epoch=epoch, request_id=request_id, token_hash=token_hash)
    return replace(record, epoch=epoch, export=claimed)


def release(record: CellRecord, proof: LeaseProof) -> CellRecord | None:
    """Put an export back into the queue whose exporter went away before it heard of the claim."""
    export = record.export
    if export is None or not _is_live(export, proof) or export.token_hash != proof.token_hash:
        return None
    return replace(
        record, export=replace(export, phase=Phase.QUEUED, epoch=0, request_id="", token_hash="", sequence=0)
    )


def advance(record: CellRecord, proof: LeaseProof, sequence: int, progress: Progress) -> CellRecord | None:
    """Take a report in. Whatever it says, the percent never falls; an old one changes nothing."""
    if sequence < 1 or sequence > _LARGEST or not _possible(progress):
        raise Refused(Refusal.PROGRESS_INVALID)
    export = _held(record, proof)
    if sequence <= export.sequence:
        return None
    percent = max(export.percent, progress.percent)
    return replace(record, export=replace(export, sequence=sequence, percent=percent, progress=progress))


def finish(record: CellRecord, proof: LeaseProof, result: Result, reason: Reason | None, now: int) -> CellRecord | None:
    """End an export for its exporter. Nothing is left to do if it has ended just so already."""
    if (reason is None) != (result is Result.SUCCEEDED) or (reason is not None and reason.result is not result):
        raise Refused(Refusal.OUTCOME_INVALID)
    last = record.last_outcome
    if record.export is None and last is not None and _is_of(last, proof) and last.result is result:
        return None
    _held(record, proof)
    return end(record, result, reason, now)


def expire(record: CellRecord) -> CellRecord | None:
    """Refuse every report from here on, as nobody has spoken for the export for too long."""
    export = record.export
    if export is None or export.phase is Phase.EXPIRING:
        return None
    return replace(record, export=replace(export, phase=Phase.EXPIRING))


def end(record: CellRecord, result: Result, reason: Reason | None, now: int) -> CellRecord | None:
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


def _possible(progress: Progress) -> bool:
    pairs = (
        (progress.work_done, progress.work_total),
        (progress.entries_done, progress.entries_total),
        (progress.bytes_done, progress.bytes_total),
    )
    return all(0 <= done <= (total or _LARGEST) and 0 <= total <= _LARGEST for done, total in pairs)


def _held(record: CellRecord, proof: LeaseProof) -> Export:
    """The export that this lease is on."""
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


def _is_of(outcome: Outcome, proof: LeaseProof) -> bool:
    same = outcome.export_id == proof.export_id and outcome.epoch == proof.epoch
    return same and _same(outcome.token_hash, proof.token_hash)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
