"""Reports the progress of an export to the server, in a separate thread, so that a slow disk never costs the lease."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

import grpc

from cellexport.environment import SecretSource
from cellexport.v1.exporter_pb2 import ClaimedExport, Progress, ReportProgressRequest
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter.calls import is_transient, metadata, reason, retry_pause

# The pause after each report: an exporter sends at most five reports a second.
_SHORTEST_SECONDS = 0.2

_log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Raised when the server answers that this exporter has lost its lease on the export."""


class ExportCancelledError(Exception):
    """Raised when the server asks this exporter to end the export."""


class Heartbeat:
    """A thread that reports an export's progress to the server while the context is open.

    Args:
        token: the source of the token; read before each report.
        progress: returns the progress of the export; called in the heartbeat's thread.
        show: called with each progress, to display it.
    """

    def __init__(
        self,
        *,
        stub: ExporterServiceStub,
        token: SecretSource,
        claimed: ClaimedExport,
        progress: Callable[[], Progress],
        show: Callable[[Progress], None],
    ) -> None:
        self._stub = stub
        self._token = token
        self._claimed = claimed
        self._progress = progress
        self._show = show
        self._lease_seconds = claimed.lease_duration.seconds + claimed.lease_duration.nanos / 1e9
        self._lock = threading.Lock()
        self._sequence = 0
        self._over = threading.Event()
        self._accepted = True
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        # The copied context gives the heartbeat's log lines the request key of this thread.
        self._thread = threading.Thread(target=copy_context().run, args=(self._beat,), name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def confirm(self, stop: Callable[[], None]) -> None:
        """Report until the server accepts a report, which proves that the lease is held. Call this before publishing.

        Args:
            stop: called between tries; raises to give up.

        Raises:
            LeaseLostError: if the lease is lost.
            ExportCancelledError: if the server asks to end the export.
        """
        while not self._report(self._progress()):
            self.check()
            stop()
            self._over.wait(retry_pause())
        self.check()

    def check(self) -> None:
        """Raise `LeaseLostError` if the lease is lost, `ExportCancelledError` if the server asked to end the export."""
        if self._lost.is_set():
            raise LeaseLostError
        if self._cancelled.is_set():
            raise ExportCancelledError

    def _beat(self) -> None:
        try:
            self._run()
        except Exception:
            # Without reports the lease will expire: end the export now, not when the server refuses to let it finish.
            _log.exception("progress reports stopped by an unexpected error", extra={"cell": self._claimed.cell})
            self._lost.set()

    def _run(self) -> None:
        reported, reported_at = None, 0.0
        while not self._over.is_set() and not self._lost.is_set():
            progress = self._progress()
            now = time.monotonic()
            if progress != reported or now - reported_at >= self._lease_seconds / 4:
                self._show(progress)
                if self._report(progress):
                    reported, reported_at = progress, now
                else:
                    self._over.wait(retry_pause())
            self._over.wait(_SHORTEST_SECONDS)

    def _report(self, progress: Progress) -> bool:
        """Report once, and return whether the server accepted the report."""
        with self._lock:
            if self._lost.is_set():
                return False
            self._sequence += 1
            request = ReportProgressRequest(
                cell=self._claimed.cell, lease=self._claimed.lease, sequence=self._sequence, progress=progress
            )
            try:
                response = self._stub.ReportProgress(
                    request,
                    metadata=metadata(self._token),
                    timeout=max(1.0, self._lease_seconds / 3),
                )
            except grpc.RpcError as error:
                self._handle(error)
                return False
            self._log_change(accepted=True)
            if response.cancel_requested:
                self._cancelled.set()
            return True

    def _handle(self, error: grpc.RpcError) -> None:
        if is_transient(error, self._token):
            self._log_change(accepted=False, why=reason(error))
            return
        _log.error("lease lost", extra={"cell": self._claimed.cell, "reason": reason(error)})
        self._lost.set()

    def _log_change(self, *, accepted: bool, why: str = "") -> None:
        labels = {"cell": self._claimed.cell}
        if accepted and not self._accepted:
            _log.info("progress reports succeed again", extra=labels)
        if self._accepted and not accepted:
            _log.warning("progress reports fail; retrying", extra=labels | {"reason": why})
        self._accepted = accepted
