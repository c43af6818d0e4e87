"""Runs claimed exports one after the other: writes their snapshots, and reports how each export ended."""

import logging
import threading
import time
from pathlib import Path

import grpc

from cellexport.environment import SecretSource
from cellexport.program import logs
from cellexport.v1.cell_export_pb2 import Outcome
from cellexport.v1.exporter_pb2 import ClaimedExport, FinishExportRequest
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter import outcome, snapshot
from server.exporter.bar import Bar
from server.exporter.calls import is_transient, metadata, reason, retry_pause
from server.exporter.claims import Claims
from server.exporter.heartbeat import ExportCancelledError, Heartbeat, LeaseLostError
from server.exporter.part import FencedError, NameTakenError
from server.exporter.snapshot import StoppedError, Subject
from server.exporter.snapshot_directory import SnapshotDirectory, is_out_of_space
from server.exporter.tally import Tally
from server.exporter.walk import SourceChangedError, SourceError

# The deadline of the call that reports how an export ended.
_CALL_SECONDS = 3.0
# How long an exporter that shuts down goes on trying to report how its export ended.
_FINISH_SECONDS = 3.0

_log = logging.getLogger(__name__)


class Runner:
    """A loop that claims and runs exports until it is stopped.

    Args:
        token: the source of the token; read before each call.
        cells: the directory `cells` of the unit.
    """

    def __init__(
        self, *, stub: ExporterServiceStub, token: SecretSource, cells: Path, snapshots: SnapshotDirectory, bar: Bar
    ) -> None:
        self._stub = stub
        self._token = token
        self._cells = cells
        self._snapshots = snapshots
        self._bar = bar
        self._stopping = threading.Event()
        self._claims = Claims(stub, token, self._stopping)
        # Never set: a wait for it is the pause between the retries of `_finish`, which go on during shutdown.
        self._pause = threading.Event()

    def stop(self) -> None:
        """Stop soon, and interrupt the export in progress. May be called from any thread."""
        self._stopping.set()
        self._claims.cancel()

    def run(self) -> None:
        """Run exports until `stop` is called.

        Raises:
            RefusedError: if the server refuses the token.
        """
        while not self._stopping.is_set():
            claimed = self._claims.next()
            if claimed is not None:
                with logs.marked(request_key=claimed.request_key):
                    self._run_export(claimed)

    def _run_export(self, claimed: ClaimedExport) -> None:
        labels = {"cell": claimed.cell, "snapshot": claimed.name, "request_key": claimed.request_key}
        _log.info("export started", extra=labels)
        tally = Tally()
        heartbeat = Heartbeat(
            stub=self._stub,
            token=self._token,
            claimed=claimed,
            progress=tally.progress,
            show=lambda progress: self._bar.show(claimed.name, progress),
        )
        with heartbeat:
            try:
                why = self._attempt(claimed, tally, heartbeat)
            except (LeaseLostError, FencedError):
                _log.error("export abandoned: it no longer belongs to this exporter", extra=labels)
                return
            finally:
                self._bar.end()
        result = outcome.result_of(why)
        fields = outcome.fields_of(result, why)
        if why != Outcome.REASON_UNSPECIFIED:
            self._note(claimed, **fields)
        _log.info("export ended", extra=labels | fields)
        self._finish(claimed, result, why)

    def _attempt(self, claimed: ClaimedExport, tally: Tally, heartbeat: Heartbeat) -> Outcome.Reason.ValueType:
        """Export the cell. Return the reason if there is no snapshot, or REASON_UNSPECIFIED if there is one."""
        try:
            self._export(claimed, tally, heartbeat)
        except StoppedError:
            return Outcome.REASON_SHUTDOWN
        except ExportCancelledError:
            return Outcome.REASON_CANCELLED
        except NameTakenError:
            return Outcome.REASON_NAME_TAKEN
        except SourceError as error:
            return _failed(Outcome.REASON_SOURCE_UNREADABLE, claimed, error)
        except SourceChangedError as error:
            return _failed(Outcome.REASON_SOURCE_CHANGED, claimed, error)
        except OSError as error:
            no_space = is_out_of_space(error)
            return _failed(Outcome.REASON_NO_SPACE if no_space else Outcome.REASON_SNAPSHOT_UNWRITABLE, claimed, error)
        except (LeaseLostError, FencedError):
            raise
        except Exception:
            _log.exception(
                "export stopped by an unexpected error",
                extra={"cell": claimed.cell, "request_key": claimed.request_key},
            )
            return Outcome.REASON_INTERNAL
        return Outcome.REASON_UNSPECIFIED

    def _export(self, claimed: ClaimedExport, tally: Tally, heartbeat: Heartbeat) -> None:
        def stop() -> None:
            heartbeat.check()
            if self._stopping.is_set():
                raise StoppedError

        lease = claimed.lease
        subject = Subject(
            cell=claimed.cell,
            owner=claimed.owner,
            unit_url=claimed.unit_url,
            export_id=lease.export_id,
            epoch=lease.epoch,
            directory=self._cells / claimed.cell,
        )
        with self._snapshots.part(claimed.cell, claimed.name, lease.export_id, lease.epoch) as part:
            snapshot.count(subject, tally, stop)
            snapshot.write(subject, part.file, part.directory, tally, stop)
            part.sync()
            # Publish only after the server has accepted a last report: otherwise it may have ended the export already.
            heartbeat.confirm(stop)
            part.publish()

    def _note(self, claimed: ClaimedExport, result: str, reason: str) -> None:
        """Write the file `{Name}.error` with the reason why there is no snapshot."""
        try:
            self._snapshots.note(claimed.cell, claimed.name, result, reason)
        except OSError as error:
            _log.warning("error note not written", extra={"error": str(error)})

    def _finish(self, claimed: ClaimedExport, result: Outcome.Result.ValueType, why: Outcome.Reason.ValueType) -> None:
        """Report the result, and retry until the server answers. During shutdown, give up after 3 seconds."""
        request = FinishExportRequest(cell=claimed.cell, lease=claimed.lease, result=result, reason=why)
        give_up_at = time.monotonic() + _FINISH_SECONDS
        while True:
            try:
                self._stub.FinishExport(request, metadata=metadata(self._token), timeout=_CALL_SECONDS)
                return
            except grpc.RpcError as error:
                if not is_transient(error, self._token):
                    _log.error("server refused the result of the export", extra={"reason": reason(error)})
                    return
                if self._stopping.is_set() and time.monotonic() > give_up_at:
                    return
                self._pause.wait(retry_pause())


def _failed(why: Outcome.Reason.ValueType, claimed: ClaimedExport, error: Exception) -> Outcome.Reason.ValueType:
    """Log the error that stopped an export: the line `export ended` has only the reason. Return the reason."""
    labels = {"cell": claimed.cell, "request_key": claimed.request_key, "error": str(error)}
    _log.error("export stopped by an error", extra=labels)
    return why
