"""The end of a refused call: its status with ErrorInfo and RetryInfo on the wire, and its line in the log."""

import logging
import random
import secrets
from typing import Never

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cellexport import request_key
from cellexport.metadata import DOMAIN
from server.refusals import Refusal, Refused
from server.rpc.call_context import Context
from server.rpc.refusal_table import RETRY_SECONDS, STATUS

# The statuses of refusals for which the caller is to blame. They are logged at INFO.
_CALLERS_FAULT = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

_log = logging.getLogger(__name__)


def to_refused(error: Exception, *, method: str, cell: str, key: str) -> Refused:
    """Return a call's error as a refusal.

    An error other than `Refused` is logged with an id, and becomes UNEXPECTED with the same id.
    """
    if isinstance(error, Refused):
        return error
    error_id = secrets.token_hex(8)
    fields = {"error_id": error_id, "method": method, "cell": cell, "request_key": key}
    _log.error("unexpected error in a call", exc_info=error, extra=fields)
    return Refused(Refusal.UNEXPECTED, error_id=error_id)


def log_refusal(refused: Refused, *, method: str, cell: str, key: str) -> None:
    """Log a refused call, or one refused cell of a `BatchGetCellExports` call."""
    fields = {"reason": refused.refusal.name, "method": method, "cell": cell, "request_key": key}
    if refused.note:
        fields["note"] = refused.note
    # Only a note that asks an operator to act is logged as an error. `exports.expiry` logs an unavailable store once.
    minor = refused.refusal.value.retry or STATUS[refused.refusal] in _CALLERS_FAULT
    _log.log(logging.ERROR if refused.note and not minor else logging.INFO, "call refused", extra=fields)


async def abort(context: Context, refused: Refused, key: str) -> Never:
    """End the call with the refusal's status, text and details."""
    trailing = (
        (request_key.METADATA, key),
        ("grpc-status-details-bin", _status(refused).SerializeToString()),
        # Stop the retries of the caller's gRPC channel: they would lose the reason, and use up the caller's time while
        # the store is unavailable.
        ("grpc-retry-pushback-ms", "-1"),
    )
    await context.abort(STATUS[refused.refusal], refused.text, trailing)


def _status(refused: Refused) -> status_pb2.Status:
    spec = refused.refusal.value
    code: int = STATUS[refused.refusal].value[0]
    status = status_pb2.Status(code=code, message=refused.text)
    details = {"personium_code": spec.personium_code, **refused.details}
    info = error_details_pb2.ErrorInfo(reason=refused.refusal.name, domain=DOMAIN, metadata=details)
    status.details.add().Pack(info)
    if spec.retry:
        # Spread the retries of many callers who are refused at once.
        milliseconds = random.randint(RETRY_SECONDS * 1000, 2 * RETRY_SECONDS * 1000)  # noqa: S311 - not a secret
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(milliseconds)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
