"""Conversions between the values of `exports` and the messages of the contract."""

from collections.abc import Sequence

from google.protobuf import duration_pb2, timestamp_pb2

from cellexport.v1 import cell_export_pb2, exporter_pb2
from server.cells import Cell
from server.exports.lease import Claim, PresentedLease
from server.exports.model import CellRecord, Export, Outcome, Progress, Reason, Result
from server.exports.watches import WatchUpdate
from server.refusals import Refused
from server.rpc.refusal_table import STATUS

_RESULTS = {
    Result.SUCCEEDED: cell_export_pb2.Outcome.RESULT_SUCCEEDED,
    Result.FAILED: cell_export_pb2.Outcome.RESULT_FAILED,
    Result.INTERRUPTED: cell_export_pb2.Outcome.RESULT_INTERRUPTED,
}
_REASONS = {reason: cell_export_pb2.Outcome.Reason.Value(f"REASON_{reason.name}") for reason in Reason}
_RESULTS_BACK = {message: result for result, message in _RESULTS.items()}
_REASONS_BACK = {message: reason for reason, message in _REASONS.items()}


def cell_export(record: CellRecord) -> cell_export_pb2.CellExport:
    export, outcome = record.export, record.last_outcome
    return cell_export_pb2.CellExport(
        cell=record.cell,
        state=cell_export_pb2.CellExport.STATE_READY if export is None else cell_export_pb2.CellExport.STATE_EXPORTING,
        exportation=None if export is None else _exportation(export),
        last_outcome=None if outcome is None else _outcome(outcome),
        revision=record.revision,
        update_time=_timestamp(record.updated_at) if record.updated_at else None,
    )


def batch(
    entries: Sequence[tuple[str, cell_export_pb2.CellExport | Refused]],
) -> cell_export_pb2.BatchGetCellExportsResponse:
    """Return the response of a batch: for each cell its status or its refusal."""
    return cell_export_pb2.BatchGetCellExportsResponse(entries=[_entry(cell, answer) for cell, answer in entries])


def watch_update(update: WatchUpdate) -> cell_export_pb2.WatchCellExportResponse:
    """Return the message for an update of a watch. A keep-alive has no status, only the revision."""
    status = cell_export(update.record) if update.changed else None
    return cell_export_pb2.WatchCellExportResponse(cell_export=status, revision=update.record.revision)


def claimed_export(claim: Claim, cell: Cell, *, unit_url: str, lease_seconds: float) -> exporter_pb2.ClaimedExport:
    export = claim.export
    return exporter_pb2.ClaimedExport(
        cell=claim.cell,
        lease=exporter_pb2.Lease(
            export_id=export.export_id,
            epoch=export.epoch,
            token=claim.token,
            name=export.name,
            start_time=_timestamp(export.accepted_at),
            request_key=export.request_key,
        ),
        lease_duration=_duration(lease_seconds),
        name=export.name,
        start_time=_timestamp(export.accepted_at),
        owner=cell.owner,
        unit_url=unit_url,
        request_key=export.request_key,
    )


def presented_lease(lease: exporter_pb2.Lease) -> PresentedLease:
    return PresentedLease(
        export_id=lease.export_id,
        epoch=lease.epoch,
        token=lease.token,
        name=lease.name,
        request_key=lease.request_key,
        accepted_at=lease.start_time.seconds * 1000 + lease.start_time.nanos // 1_000_000,
    )


def progress(message: exporter_pb2.Progress) -> Progress:
    return Progress(
        work_done=message.work_done,
        work_total=message.work_total,
        entries_done=message.entries_done,
        entries_total=message.entries_total,
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
    )


def result(message: cell_export_pb2.Outcome.Result.ValueType) -> Result | None:
    """Return the result, or None if this server doesn't know it."""
    return _RESULTS_BACK.get(message)


def reason(message: cell_export_pb2.Outcome.Reason.ValueType) -> Reason | None:
    """Return the reason, or None if there is none or this server doesn't know it."""
    return _REASONS_BACK.get(message)


def seconds(message: duration_pb2.Duration) -> float:
    return message.seconds + message.nanos / 1e9


def _exportation(export: Export) -> cell_export_pb2.Exportation:
    return cell_export_pb2.Exportation(
        name=export.name,
        start_time=_timestamp(export.accepted_at),
        progress_percent=export.percent,
        entries_done=export.progress.entries_done,
        entries_total=export.progress.entries_total,
        bytes_done=export.progress.bytes_done,
        bytes_total=export.progress.bytes_total,
        stalled=export.stalled,
        cancel_requested=export.cancelled,
    )


def _outcome(outcome: Outcome) -> cell_export_pb2.Outcome:
    return cell_export_pb2.Outcome(
        result=_RESULTS[outcome.result],
        reason=cell_export_pb2.Outcome.REASON_UNSPECIFIED if outcome.reason is None else _REASONS[outcome.reason],
        name=outcome.name,
        end_time=_timestamp(outcome.ended_at),
    )


def _entry(cell: str, answer: cell_export_pb2.CellExport | Refused) -> cell_export_pb2.CellExportEntry:
    if isinstance(answer, cell_export_pb2.CellExport):
        return cell_export_pb2.CellExportEntry(cell=cell, cell_export=answer)
    spec = answer.refusal.value
    refusal = cell_export_pb2.Refusal(
        status_code=STATUS[answer.refusal].value[0],
        reason=answer.refusal.name,
        personium_code=spec.personium_code,
        message=answer.text,
        retryable=spec.retry,
    )
    return cell_export_pb2.CellExportEntry(cell=cell, refusal=refusal)


def _timestamp(milliseconds: int) -> timestamp_pb2.Timestamp:
    whole, rest = divmod(milliseconds, 1000)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=rest * 1_000_000)


def _duration(value: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(value), nanos=int(value % 1 * 1e9))
