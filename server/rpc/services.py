"""The methods of the gRPC contract and their privileges.

Each method converts the request, calls one operation of `exports`, and converts the result to the response.
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cellexport.v1 import cell_export_pb2 as status_pb2
from cellexport.v1 import exporter_pb2
from server.auth.rights import Privilege
from server.cells import Cell, CellDirectory
from server.exports import events
from server.exports.claims import Claims
from server.exports.clock import Clock
from server.exports.events import Events
from server.exports.lifecycle import ExportLifecycle
from server.exports.model import CellRecord, Reason, Result, outcome_fields
from server.exports.repository import Repository
from server.exports.watches import Watches
from server.refusals import Refusal, Refused
from server.rpc import messages
from server.rpc.admission import Call
from server.rpc.methods import BatchMethod, GuardedMethod, StreamMethod, UnaryMethod
from server.rpc.stream_limit import StreamLimit

_LONGEST_WAIT_SECONDS = 30.0
_MOST_CELLS_IN_A_BATCH = 250
_MOST_WATCHES = 20_000
_MOST_WATCHES_OF_A_CALLER = 1_000

_log = logging.getLogger(__name__)


class CellExportService:
    """The status of a cell's export, its start and its cancellation.

    Args:
        log: the event log, which gets an event for each status that is returned.
        clock: milliseconds since 1970.
    """

    def __init__(
        self, *, repository: Repository, lifecycle: ExportLifecycle, watches: Watches, log: Events, clock: Clock
    ) -> None:
        self._repository = repository
        self._lifecycle = lifecycle
        self._watches = watches
        self._events = log
        self._clock = clock
        self.watch_limit = StreamLimit(total=_MOST_WATCHES, per_caller=_MOST_WATCHES_OF_A_CALLER)

    @property
    def methods(self) -> Mapping[str, GuardedMethod]:
        """Return the descriptions of the methods by name, for `rpc.guard`."""
        return {
            "GetCellExport": UnaryMethod(Privilege.ROOT, self._get),
            "BatchGetCellExports": BatchMethod(
                Privilege.ROOT, self._get_one, messages.batch, most_cells=_MOST_CELLS_IN_A_BATCH
            ),
            "WatchCellExport": StreamMethod(Privilege.ROOT, self._watch, self.watch_limit),
            "StartCellExport": UnaryMethod(Privilege.ROOT, self._start),
            "CancelCellExport": UnaryMethod(Privilege.ROOT, self._cancel),
        }

    async def _get(self, request: status_pb2.GetCellExportRequest, call: Call) -> status_pb2.GetCellExportResponse:
        return status_pb2.GetCellExportResponse(cell_export=await self._get_one(request.cell, call))

    async def _get_one(self, cell: str, call: Call) -> status_pb2.CellExport:
        record = await self._repository.read(cell)
        await self._log_status(record, call)
        return messages.cell_export(record)

    async def _watch(
        self, request: status_pb2.WatchCellExportRequest, call: Call
    ) -> AsyncGenerator[status_pb2.WatchCellExportResponse, None]:
        logged = False
        watch = self._watches.watch(request.cell, request.after_revision, until_ready=request.until_ready)
        async with aclosing(watch) as updates:
            async for update in updates:
                if not logged:
                    await self._log_status(update.record, call)
                    logged = True
                yield messages.watch_update(update)

    async def _log_status(self, record: CellRecord, call: Call) -> None:
        event = events.status(record, time=self._clock(), request_key=call.request_key, caller=call.identity.caller)
        await self._events.write(event)

    async def _start(
        self, request: status_pb2.StartCellExportRequest, call: Call
    ) -> status_pb2.StartCellExportResponse:
        name = request.name if request.HasField("name") else None
        record = await self._lifecycle.start(request.cell, name, call.request_key, call.identity.caller)
        _log.info("export accepted", extra={"cell": request.cell, "request_key": call.request_key})
        return status_pb2.StartCellExportResponse(cell_export=messages.cell_export(record))

    async def _cancel(
        self, request: status_pb2.CancelCellExportRequest, call: Call
    ) -> status_pb2.CancelCellExportResponse:
        name = request.name if request.HasField("name") else None
        record = await self._lifecycle.cancel(request.cell, name, call.identity.caller)
        _log.info("export cancelled", extra={"cell": request.cell, "request_key": call.request_key})
        return status_pb2.CancelCellExportResponse(cell_export=messages.cell_export(record))


class ExporterService:
    """The claims and reports of exporters, and the end of their exports.

    Args:
        unit_url: the unit's URL, which exporters write into the manifest of each snapshot.
        lease_seconds: how long a lease lasts after each report.
    """

    def __init__(
        self, lifecycle: ExportLifecycle, claims: Claims, cells: CellDirectory, *, unit_url: str, lease_seconds: float
    ) -> None:
        self._lifecycle = lifecycle
        self._claims = claims
        self._cells = cells
        self._unit_url = unit_url
        self._lease_seconds = lease_seconds

    @property
    def methods(self) -> Mapping[str, UnaryMethod]:
        """Return the descriptions of the methods by name, for `rpc.guard`."""
        return {
            "ClaimExport": UnaryMethod(
                Privilege.EXPORT_REPORT, self._claim, _LONGEST_WAIT_SECONDS + 10, ends_with_token=True
            ),
            "ReportProgress": UnaryMethod(Privilege.EXPORT_REPORT, self._report),
            "FinishExport": UnaryMethod(Privilege.EXPORT_REPORT, self._finish),
        }

    async def _claim(self, request: exporter_pb2.ClaimExportRequest, call: Call) -> exporter_pb2.ClaimExportResponse:
        if request.give_back:
            await self._claims.give_back(request.request_id, call.identity.holder)
            return exporter_pb2.ClaimExportResponse()
        wait = min(messages.seconds(request.wait), _LONGEST_WAIT_SECONDS)
        claim = await self._claims.claim(request.request_id, wait, call.identity.holder)
        if claim is None:
            return exporter_pb2.ClaimExportResponse()
        _log.info("export claimed", extra={"cell": claim.cell, "request_key": claim.export.request_key})
        claimed = messages.claimed_export(
            claim, self._find_cell(claim.cell), unit_url=self._unit_url, lease_seconds=self._lease_seconds
        )
        return exporter_pb2.ClaimExportResponse(claimed_export=claimed)

    async def _report(
        self, request: exporter_pb2.ReportProgressRequest, call: Call
    ) -> exporter_pb2.ReportProgressResponse:
        progress = messages.progress(request.progress)
        proof = messages.presented_lease(request.lease).proof(call.identity.holder)
        cancelled = await self._lifecycle.report(request.cell, proof, request.sequence, progress)
        return exporter_pb2.ReportProgressResponse(cancel_requested=cancelled)

    async def _finish(self, request: exporter_pb2.FinishExportRequest, call: Call) -> exporter_pb2.FinishExportResponse:
        result, reason = _ending(request)
        proof = messages.presented_lease(request.lease).proof(call.identity.holder)
        record = await self._lifecycle.finish(request.cell, proof, result, reason, call.identity.caller)
        labels = {"cell": request.cell, "request_key": proof.request_key}
        _log.info("export ended", extra=labels | outcome_fields(result, reason))
        return exporter_pb2.FinishExportResponse(cell_export=messages.cell_export(record))

    def _find_cell(self, name: str) -> Cell:
        """Return the cell of a claim. A cell that was removed meanwhile has no owner: its exporter fails the export."""
        try:
            return self._cells.find(name)
        except Refused:
            return Cell(name=name)


def _ending(request: exporter_pb2.FinishExportRequest) -> tuple[Result, Reason | None]:
    result = messages.result(request.result)
    # A newer exporter may send a reason that this server doesn't know. The export has still failed: record INTERNAL.
    reason = messages.reason(request.reason) or (Reason.INTERNAL if request.reason else None)
    if result is None:
        raise Refused(Refusal.OUTCOME_INVALID)
    return result, reason
