"""The methods of the contract, and the privilege that each needs: messages in, one rule, messages out."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cellexport.v1 import cell_export_pb2 as status_pb2
from cellexport.v1 import exporter_pb2
from server.auth.rights import Privilege
from server.cells import Cell, CellDirectory
from server.exports import events
from server.exports.claims import Claims
from server.exports.clock import now_ms
from server.exports.events import Events
from server.exports.lifecycle import ExportLifecycle
from server.exports.model import CellRecord, Reason, Result, told
from server.exports.watches import Watches
from server.refusals import Refusal, Refused
from server.rpc import messages
from server.rpc.admission import Call
from server.rpc.methods import BatchMethod, GuardedMethod, StreamMethod, UnaryMethod
from server.rpc.stream_limit import StreamLimit

_LONGEST_WAIT_SECONDS = 30.0
_MOST_CELLS_OF_ONE_CALL = 250
_MOST_WATCHES = 20_000
_MOST_WATCHES_OF_ONE = 1_000

_log = logging.getLogger(__name__)


class CellExportService:
    def __init__(self, registry: ExportLifecycle, watches: Watches, log: Events) -> None:
        self._registry = registry
        self._watches = watches
        self._events = log
        self.watch_limit = StreamLimit(total=_MOST_WATCHES, per_caller=_MOST_WATCHES_OF_ONE)

    @property
    def methods(self) -> Mapping[str, GuardedMethod]:
        return {
            "GetCellExport": UnaryMethod(Privilege.ROOT, self._get),
            "BatchGetCellExports": BatchMethod(
                Privilege.ROOT, self._get_one, messages.batch, most_cells=_MOST_CELLS_OF_ONE_CALL
            ),
            "WatchCellExport": StreamMethod(Privilege.ROOT, self._watch, self.watch_limit),
            "StartCellExport": UnaryMethod(Privilege.ROOT, self._start),
            "CancelCellExport": UnaryMethod(Privilege.ROOT, self._cancel),
        }

    async def _get(self, request: status_pb2.GetCellExportRequest, call: Call) -> status_pb2.GetCellExportResponse:
        return status_pb2.GetCellExportResponse(cell_export=await self._get_one(request.cell, call))

    async def _get_one(self, cell: str, call: Call) -> status_pb2.CellExport:
        record = await self._registry.get(cell)
        await self._tell(record, call)
        return messages.cell_export(record)

    async def _watch(
        self, request: status_pb2.WatchCellExportRequest, call: Call
    ) -> AsyncGenerator[status_pb2.WatchCellExportResponse, None]:
        told = False
        watch = self._watches.watch(request.cell, request.after_revision, until_ready=request.until_ready)
        async with aclosing(watch) as sights:
            async for sight in sights:
                if not told:
                    await self._tell(sight.record, call)
                    told = True
                yield messages.sight(sight)

    async def _tell(self, record: CellRecord, call: Call) -> None:
        caller = call.identity.caller
        await self._events.write(events.status(record, time=now_ms(), request_key=call.request_key, caller=caller))

    async def _start(
        self, request: status_pb2.StartCellExportRequest, call: Call
    ) -> status_pb2.StartCellExportResponse:
        name = request.name if request.HasField("name") else None
        record = await self._registry.start(request.cell, name, call.request_key, call.identity.caller)
        _log.info("export accepted", extra={"cell": request.cell, "request_key": call.request_key})
        return status_pb2.StartCellExportResponse(cell_export=messages.cell_export(record))

    async def _cancel(
        self, request: status_pb2.CancelCellExportRequest, call: Call
    ) -> status_pb2.CancelCellExportResponse:
        name = request.name if request.HasField("name") else None
        record = await self._registry.cancel(request.cell, name, call.identity.caller)
        _log.info("export cancelled", extra={"cell": request.cell, "request_key": call.request_key})
        return status_pb2.CancelCellExportResponse(cell_export=messages.cell_export(record))


class ExporterService:
    """For exporters.

    Args:
        unit_url: goes into the manifests of snapshots.
        lease_seconds: how long a lease lives after each report.
    """

    def __init__(
        self, registry: ExportLifecycle, claims: Claims, cells: CellDirectory, *, unit_url: str, lease_seconds: float
    ) -> None:
        self._registry = registry
        self._claims = claims
        self._cells = cells
        self._unit_url = unit_url
        self._lease_seconds = lease_seconds

    @property
    def methods(self) -> Mapping[str, UnaryMethod]:
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
            claim, self._cell(claim.cell), unit_url=self._unit_url, lease_seconds=self._lease_seconds
        )
        return exporter_pb2.ClaimExportResponse(claimed_export=claimed)

    async def _report(
        self, request: exporter_pb2.ReportProgressRequest, call: Call
    ) -> exporter_pb2.ReportProgressResponse:
        progress = messages.progress(request.progress)
        proof = messages.proof(request.lease, call.identity.holder)
        cancelled = await self._registry.report(request.cell, proof, request.sequence, progress)
        return exporter_pb2.ReportProgressResponse(cancel_requested=cancelled)

    async def _finish(self, request: exporter_pb2.FinishExportRequest, call: Call) -> exporter_pb2.FinishExportResponse:
        result, reason = _ending(request)
        proof = messages.proof(request.lease, call.identity.holder)
        record = await self._registry.finish(request.cell, proof, result, reason, call.identity.caller)
        labels = {"cell": request.cell, "request_key": proof.request_key}
        _log.info("export finished", extra=labels | told(result, reason))
        return exporter_pb2.FinishExportResponse(cell_export=messages.cell_export(record))

    def _cell(self, name: str) -> Cell:
        """The cell of a claim. One that has gone meanwhile is the exporter's to find out."""
        try:
            return self._cells.find(name)
        except Refused:
            return Cell(name=name)


def _ending(request: exporter_pb2.FinishExportRequest) -> tuple[Result, Reason | None]:
    result = messages.result(request.result)
    # A reason that a newer exporter knows and this server doesn't is still a failure.
    reason = messages.reason(request.reason) or (Reason.INTERNAL if request.reason else None)
    if result is None:
        raise Refused(Refusal.OUTCOME_INVALID)
    return result, reason
