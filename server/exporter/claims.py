"""Claims exports from the server, and retries while the server can't be reached."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import grpc
from google.protobuf.duration_pb2 import Duration

from cellexport.environment import SecretSource
from cellexport.v1.exporter_pb2 import ClaimedExport, ClaimExportRequest
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter.calls import is_transient, metadata, reason, retry_pause

# How long a claim waits in the server for an export.
_WAIT_SECONDS = 20
# Failing claims are logged only after this long: while a server starts, claims fail for about as long.
_PATIENCE_SECONDS = 3.0
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


class Claims:
    """The claims of one exporter. Failures are logged once they last, and once more when they are over.

    Args:
        token: the source of the token; read before each call.
        stopping: set when the exporter shuts down. A claim then ends at once.
    """

    def __init__(self, stub: ExporterServiceStub, token: SecretSource, stopping: threading.Event) -> None:
        self._stub = stub
        self._token = token
        self._stopping = stopping
        # Cancels the claim that waits.
        self._cancel: Callable[[], object] = bool
        self._failing_since: float | None = None
        self._logged_failure = False
        self._was_accepted = False

    def cancel(self) -> None:
        """Cancel the claim that waits. May be called from any thread."""
        self._cancel()

    def next(self) -> ClaimedExport | None:
        """Claim an export. Return None if no export was queued in time, or if the exporter is shutting down.

        Raises:
            RefusedError: if the server refuses the token.
        """
        request_id = uuid.uuid4().hex
        while True:
            # After a failed claim, ask for an immediate answer: it shows soon that the server is available again.
            wait = 0 if self._failing_since else _WAIT_SECONDS
            request = ClaimExportRequest(request_id=request_id, wait=Duration(seconds=wait))
            call = self._stub.ClaimExport.future(request, metadata=metadata(self._token), timeout=_WAIT_SECONDS + 5)
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
                self._stopping.wait(retry_pause())
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
            self._stub.ClaimExport(
                request, metadata=metadata(self._token), timeout=_GIVE_BACK_SECONDS, wait_for_ready=True
            )

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
