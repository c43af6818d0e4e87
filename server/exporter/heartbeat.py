"""Tells the server how far an export is, from a thread of its own, so that no slow disk costs the lease."""

import logging
import random
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

import grpc

from cellexport import client
from cellexport.environment import SecretSource
from cellexport.v1.exporter_pb2 import ClaimedExport, Progress, ReportProgressRequest
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub

# At most five reports a second.
_SHORTEST_SECONDS = 0.2
_RETRY_SECONDS = 0.5

# What a server may get over. With any other answer there is nothing to wait for: the lease runs out.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

_log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Raised when the server says that the export is not ours any more."""


class ExportCancelledError(Exception):
    """Raised when the server says that the export is to end."""


class Heartbeat:
    """Reports while its context is open.

    Args:
        token: what to present; asked before each report.
        progress: how far the export is; called from the heartbeat's thread.
        show: called with each progress, to show it.
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
        self._turn = threading.Lock()
        self._sequence = 0
        self._over = threading.Event()
        self._heard = True
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        # What this thread's lines of the log are marked with, the heartbeat's are.
        self._thread = threading.Thread(target=copy_context().run, args=(self._beat,), name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def confirm(self, stop: Callable[[], None]) -> None:
        """Wait until the server has answered a report.

        Args:
            stop: called between tries; raises to give up.

        Raises:
            LeaseLostError, ExportCancelledError: if the server answers so.
        """
        while not self._report(self._progress()):
            self.check()
            stop()
            self._over.wait(jittered(_RETRY_SECONDS))
        self.check()

    def check(self) -> None:
        """Raise what the server has answered last: `LeaseLostError`, `ExportCancelledError`, or nothing."""
        if self._lost.is_set():
            raise LeaseLostError
        if self._cancelled.is_set():
            raise ExportCancelledError

    def _beat(self) -> None:
        try:
            self._run()
        except Exception:
            # A lease that nobody renews will be lost; to know it now is better than to find out.
            _log.exception("unexpected error", extra={"cell": self._claimed.cell})
            self._lost.set()

    def _run(self) -> None:
        told, told_at = None, 0.0
        while not self._over.is_set() and not self._lost.is_set():
            progress = self._progress()
            now = time.monotonic()
            if progress != told or now - told_at >= self._lease_seconds / 4:
                self._show(progress)
                if self._report(progress):
                    told, told_at = progress, now
                else:
                    self._over.wait(jittered(_RETRY_SECONDS))
            self._over.wait(_SHORTEST_SECONDS)

    def _report(self, progress: Progress) -> bool:
        """Report once, and tell whether the server took it."""
        with self._turn:
            if self._lost.is_set():
                return False
            self._sequence += 1
            request = ReportProgressRequest(
                cell=self._claimed.cell, lease=self._claimed.lease, sequence=self._sequence, progress=progress
            )
            try:
                response = self._stub.ReportProgress(
                    request,
                    metadata=client.bearer(self._token.latest().reveal()),
                    timeout=max(1.0, self._lease_seconds / 3),
                )
            except grpc.RpcError as error:
                self._take(error)
                return False
            self._say_heard(heard=True)
            if response.cancel_requested:
                self._cancelled.set()
            return True

    def _take(self, error: grpc.RpcError) -> None:
        if is_transient(error, self._token):
            self._say_heard(heard=False, why=reason(error))
            return
        _log.error("the lease is lost", extra={"cell": self._claimed.cell, "reason": reason(error)})
        self._lost.set()

    def _say_heard(self, *, heard: bool, why: str = "") -> None:
        labels = {"cell": self._claimed.cell}
        if heard and not self._heard:
            _log.info("the server takes reports again", extra=labels)
        if self._heard and not heard:
            _log.warning("the server takes no reports: trying again", extra=labels | {"reason": why})
        self._heard = heard


def is_transient(error: grpc.RpcError, token: SecretSource) -> bool:
    """Whether the same call may be answered yet. A token that is refused may be followed by another in its file."""
    return error.code() in _TRANSIENT or (token.renewable and error.code() is grpc.StatusCode.UNAUTHENTICATED)


def reason(error: grpc.RpcError) -> str:
    """Why a call failed: the server's reason, or the status where it gave none."""
    info = client.error_info(error)
    return error.code().name if info is None else info.reason


def jittered(seconds: float) -> float:
    """Half as long to half as long again, so that exporters don't come all at once."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - guards nothing
