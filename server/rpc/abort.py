"""How a call ends that was refused: a row of `errors` as status, ErrorInfo and RetryInfo, and a line in the log."""

import logging
import random
import secrets
from typing import Never

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cellexport import request_key
from cellexport.metadata import DOMAIN
from server.refusals import RETRY_SECONDS, Refusal, Refused
from server.rpc.call_context import Context

_log = logging.getLogger(__name__)


def logged(error: Exception, *, method: str, cell: str, key: str) -> Refused:
    """Log what has ended a call, or one of the many that a call is about, and return it as its caller may know it."""
    refused = error if isinstance(error, Refused) else _unexpected(error, key)
    _log_refusal(refused, {"method": method, "cell": cell, "request_key": key})
    return refused


def _unexpected(error: Exception, key: str) -> Refused:
    """What callers get to know of any other exception: an id that is found in the log."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected error", exc_info=error, extra={"error_id": error_id, "request_key": key})
    return Refused(Refusal.UNEXPECTED, error_id=error_id)


def _log_refusal(error: Refused, call: dict[str, str]) -> None:
    fields = {"reason": error.refusal.reason} | call | ({"note": error.note} if error.note else {})
    row = error.refusal.value
    # What a caller did wrong is nothing that an operator has to mend; a store that is away is told once, elsewhere.
    minor = row.retry or row.status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    _log.log(logging.ERROR if error.note and not minor else logging.INFO, "refused", extra=fields)


async def abort(context: Context, error: Refused, key: str) -> Never:
    row = error.refusal.value
    status = _status(error)
    trailing = (
        (request_key.METADATA, key),
        ("grpc-status-details-bin", status.SerializeToString()),
        # What we say ourselves is the last word: a channel that tried again by itself would lose the reason, and use up
        # the caller's time where a store is away.
        ("grpc-retry-pushback-ms", "-1"),
    )
    await context.abort(row.status, error.text, trailing)


def _status(error: Refused) -> status_pb2.Status:
    row = error.refusal.value
    status = status_pb2.Status(code=row.status.value[0], message=error.text)
    details = {"personium_code": row.personium_code, **error.details}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.refusal.reason, domain=DOMAIN, metadata=details))
    if row.retry:
        # Of many callers who are refused at once, not all are to be back at once.
        milliseconds = random.randint(RETRY_SECONDS * 1000, 2 * RETRY_SECONDS * 1000)  # noqa: S311 - guards nothing
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(milliseconds)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
