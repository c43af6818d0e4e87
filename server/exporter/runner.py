"""Takes exports from the server, one after the other, and sees each through to its end."""

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
from server.exporter import ending, snapshot
from server.exporter.bar import Bar
from server.exporter.heartbeat import (
    ExportCancelledError,
    Heartbeat,
    LeaseLostError,
    is_transient,
    jittered,
    reason,
)
from server.exporter.part import FencedError, NameTakenError
from server.exporter.snapshot import StoppedError, Subject
from server.exporter.snapshot_directory import FULL, SnapshotDirectory
from server.exporter.tally import Tally
from server.exporter.walk import SourceChangedError, SourceError

_WAIT_SECONDS = 20
_CALL_SECONDS = 3.0
_RETRY_SECONDS = 0.5
_PATIENCE_SECONDS = 3.0
# How long an exporter that was told to end tries to say so.
_FAREWELL_SECONDS = 3.0
_GIVE_BACK_SECONDS = 1.0
_REFUSALS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """Raised when the server doesn't take our token. Its text says so."""

    def __init__(self) -> None:
        super().__init__(
            "the server refuses the token: set CELLEXPORT_EXPORTER_TOKEN, or CELLEXPORT_MASTER_TOKEN, to one it takes."
        )


class Runner:
    """Works until told to stop.

    Args:
        token: what to present; asked before each call.
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
        # Never set: what is waited on between tries that go on even when we are stopping.
        self._pause = threading.Event()
        self._cancel: Callable[[], object] = bool
        self._away_since: float | None = None
        self._said_away = False
        # Whether the server has taken our token, ever.
        self._was_taken = False

    def stop(self) -> None:
        """End soon, from any thread: an export that is being written is interrupted."""
        self._stopping.set()
        self._cancel()

    def run(self) -> None:
        """Do exports until told to stop.

        Raises:
            RefusedError: if the server doesn't take the token.
        """
        while not self._stopping.is_set():
            claimed = self._claim()
            if claimed is not None:
                with logs.marked(request_key=claimed.request_key):
                    self._do(claimed)

    def _claim(self) -> ClaimedExport | None:
        """Wait for work. None if there was none, or we were told to stop."""
        request_id = uuid.uuid4().hex
        while True:
            # A server that was away is asked for an answer at once, to know that it is back.
            wait = 0 if self._away_since else _WAIT_SECONDS
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
                self._say_away(error)
                self._stopping.wait(jittered(_RETRY_SECONDS))
                continue
            self._say_back()
            return response.claimed_export if response.HasField("claimed_export") else None

    def _give_back(self, request_id: str) -> None:
        """A claim may be answered in the moment it is cancelled: nobody is to wait for its lease to run out."""
        request = ClaimExportRequest(request_id=request_id, give_back=True)
        with suppress(grpc.RpcError):
            # A connection that broke with the answer may be coming back.
            self._stub.ClaimExport(request, metadata=self._metadata(), timeout=_GIVE_BACK_SECONDS, wait_for_ready=True)

    def _do(self, claimed: ClaimedExport) -> None:
        labels = {"cell": claimed.cell, "snapshot": claimed.name, "request_key": claimed.request_key}
        _log.info("export begins", extra=labels)
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
                _log.error("export given up: it is not ours any more", extra=labels)
                return
            finally:
                self._bar.end()
        result = ending.result_of(why)
        told = ending.told(result, why)
        if why != Outcome.REASON_UNSPECIFIED:
            self._note(claimed, **told)
        _log.info("export ends", extra=labels | told)
        self._finish(claimed, result, why)

    def _attempt(self, claimed: ClaimedExport, tally: Tally, heartbeat: Heartbeat) -> Outcome.Reason.ValueType:
        """Do an export, and return why there is no snapshot: REASON_UNSPECIFIED if there is one."""
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
            full = error.errno in FULL
            return _failed(Outcome.REASON_NO_SPACE if full else Outcome.REASON_SNAPSHOT_UNWRITABLE, claimed, error)
        except (LeaseLostError, FencedError):
            raise
        except Exception:
            _log.exception("unexpected error", extra={"cell": claimed.cell, "request_key": claimed.request_key})
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
            # Only who has just been heard may publish: anyone else may have been given up on.
            heartbeat.confirm(stop)
            part.publish()

    def _note(self, claimed: ClaimedExport, result: str, reason: str) -> None:
        try:
            self._snapshots.note(claimed.cell, claimed.name, result, reason)
        except OSError as error:
            _log.warning("the note of the failure can't be written", extra={"error": str(error)})

    def _finish(self, claimed: ClaimedExport, result: Outcome.Result.ValueType, why: Outcome.Reason.ValueType) -> None:
        """Say how it ended, until the server has heard it."""
        request = FinishExportRequest(cell=claimed.cell, lease=claimed.lease, result=result, reason=why)
        last_try = time.monotonic() + _FAREWELL_SECONDS
        while True:
            try:
                self._stub.FinishExport(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
                return
            except grpc.RpcError as error:
                if not is_transient(error, self._token):
                    _log.error("the end of the export was refused", extra={"reason": reason(error)})
                    return
                if self._stopping.is_set() and time.monotonic() > last_try:
                    return
                self._pause.wait(jittered(_RETRY_SECONDS))

    def _metadata(self) -> client.Metadata:
        return client.bearer(self._token.latest().reveal())

    def _say_away(self, error: grpc.RpcError) -> None:
        """Log, once, that the server gives no work: not at once, as it may be just starting."""
        if error.code() in _REFUSALS and not self._may_be_renewed(error):
            raise RefusedError
        now = time.monotonic()
        self._away_since = self._away_since or now
        if not self._said_away and now - self._away_since > _PATIENCE_SECONDS:
            _log.warning("the server gives no work: trying again", extra={"reason": reason(error)})
            self._said_away = True

    def _may_be_renewed(self, error: grpc.RpcError) -> bool:
        """Whether another token may follow in the file. One that never was any good is a mistake, and no wait helps."""
        was_good = self._was_taken or reason(error) == "TOKEN_EXPIRED"
        return was_good and is_transient(error, self._token)

    def _say_back(self) -> None:
        if self._said_away:
            _log.info("the server answers again")
        self._away_since, self._said_away, self._was_taken = None, False, True


def _failed(why: Outcome.Reason.ValueType, claimed: ClaimedExport, error: Exception) -> Outcome.Reason.ValueType:
    labels = {"cell": claimed.cell, "request_key": claimed.request_key, "error": str(error)}
    _log.error("export failed", extra=labels)
    return why
