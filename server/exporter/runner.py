"""Claims exports from the server, one after the other, writes their snapshots, and reports how each export ended."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from cellexport import client
from cellexport.environment import SecretSource
from cellexport.program import logs
from cellexport.v1.cell_export_pb2 import Outcome
from cellexport.v1.exporter_pb2 import ClaimedExport, ClaimExportRequest, FinishExportRequest
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter import outcome, snapshot
from server.exporter.bar import Bar
from server.exporter.calls import is_transient, jittered, reason
from server.exporter.heartbeat import ExportCancelledError, Heartbeat, LeaseLostError
from server.exporter.part import FencedError, NameTakenError
from server.exporter.snapshot import StoppedError, Subject
from server.exporter.snapshot_directory import SnapshotDirectory, is_out_of_space
from server.exporter.tally import Tally
from server.exporter.walk import SourceChangedError, SourceError

# How long a claim waits in the server for an export.
_WAIT_SECONDS = 20
# The deadline of the call that reports how an export ended.
_CALL_SECONDS = 3.0
# The average pause before a retry.
_RETRY_SECONDS = 0.5
# Failing claims are logged only after this long: while a server starts, claims fail for about as long.
_PATIENCE_SECONDS = 3.0
# How long an exporter that shuts down goes on trying to report how its export ended.
_FINISH_SECONDS = 3.0
# The deadline of the call that returns an export to the queue.
_GIVE_BACK_SECONDS = 1.0
# The gRPC statuses with which the server refuses a token.
_REFUSALS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """Raised when the server refuses the exporter's token. The text says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "the server refuses the token: set CELLEXPORT_EXPORTER_TOKEN, or CELLEXPORT_MASTER_TOKEN, to a valid one."
        )


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
        # Never set: a wait for it is the pause between the retries of `_finish`, which go on during shutdown.
        self._pause = threading.Event()
        # Cancels the claim that waits.
        self._cancel: Callable[[], object] = bool
        self._failing_since: float | None = None
        self._logged_failure = False
        self._was_accepted = False

    def stop(self) -> None:
        """Stop soon, and interrupt the export in progress. May be called from any thread."""
        self._stopping.set()
        self._cancel()

    def run(self) -> None:
        """Run exports until `stop` is called.

        Raises:
            RefusedError: if the server refuses the token.
        """
        while not self._stopping.is_set():
            claimed = self._claim()
            if claimed is not None:
                with logs.marked(request_key=claimed.request_key):
                    self._run_export(claimed)

    def _claim(self) -> ClaimedExport | None:
        """Claim an export. Return None if no export was queued in time, or if the exporter is shutting down."""
        request_id = uuid.uuid4().hex
        while True:
            # After a failed claim, ask for an immediate answer: it shows soon that the server is available again.
            wait = 0 if self._failing_since else _WAIT_SECONDS
            request = ClaimExportRequest(request_id=request_id, wait=Duration(seconds=wait))
            call = self._stub.ClaimExport.future(request, metadata=self._metadata(), timeout=_WAIT_SECONDS + 5)
            self._cancel = call.cancel
            if self._stopping.is_set():
                call.cancel()
            try:
                response = call.result()
            except grpc.FutureCancelledError:
                self._give_back(request_id)
                return None
            except grpc.RpcError as error:
                self._log_failure(error)
                self._stopping.wait(jittered(_RETRY_SECONDS))
                continue
            self._log_recovery()
            return response.claimed_export if response.HasField("claimed_export") else None

    def _give_back(self, request_id: str) -> None:
        """Return the export of a cancelled claim to the queue.

        The server may have given an export to the claim just before the claim was cancelled. Without this call, that
        export would wait until its lease expires.
        """
        request = ClaimExportRequest(request_id=request_id, give_back=True)
        with suppress(grpc.RpcError):
            # wait_for_ready: the connection may have broken, and the answer to the claim with it. Wait for a new one.
            self._stub.ClaimExport(request, metadata=self._metadata(), timeout=_GIVE_BACK_SECONDS, wait_for_ready=True)

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
                self._stub.FinishExport(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
                return
            except grpc.RpcError as error:
                if not is_transient(error, self._token):
                    _log.error("server refused the result of the export", extra={"reason": reason(error)})
                    return
                if self._stopping.is_set() and time.monotonic() > give_up_at:
                    return
                self._pause.wait(jittered(_RETRY_SECONDS))

    def _metadata(self) -> client.Metadata:
        return client.bearer(self._token.latest().reveal())

    def _log_failure(self, error: grpc.RpcError) -> None:
        """Log once that claims have failed for 3 seconds. Raise `RefusedError` if the token is refused for good."""
        if error.code() in _REFUSALS and not self._may_be_renewed(error):
            raise RefusedError
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if not self._logged_failure and now - self._failing_since > _PATIENCE_SECONDS:
            _log.warning("claims fail; retrying", extra={"reason": reason(error)})
            self._logged_failure = True

    def _may_be_renewed(self, error: grpc.RpcError) -> bool:
        """Return whether somebody may replace the refused token in its file.

        A token that was never valid is a configuration error, so a retry would hide it.
        """
        was_valid = self._was_accepted or reason(error) == "TOKEN_EXPIRED"
        return was_valid and is_transient(error, self._token)

    def _log_recovery(self) -> None:
        if self._logged_failure:
            _log.info("claims succeed again")
        self._failing_since, self._logged_failure, self._was_accepted = None, False, True


def _failed(why: Outcome.Reason.ValueType, claimed: ClaimedExport, error: Exception) -> Outcome.Reason.ValueType:
    """Log the error that stopped an export: the line `export ended` has only the reason. Return the reason."""
    labels = {"cell": claimed.cell, "request_key": claimed.request_key, "error": str(error)}
    _log.error("export stopped by an error", extra=labels)
    return why
