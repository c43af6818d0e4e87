"""Errors of calls to the server, as errors of the REST facade.

The server sends the error's code in Personium's list, its message, and whether a retry makes sense. This module adds
the details that a gRPC error lacks. For a reason that this version doesn't know, sent without a valid code, the gRPC
status decides the answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from cellexport import client
from gateway import errors
from gateway.errors import ApiError, Problem

_CODE = re.compile(r"PR([0-9]{3})-[A-Z]{2}-[0-9]{4}", re.ASCII)
# The longest message that is taken over from the server, in characters. The longest one in the list of errors has 84.
_LONGEST_MESSAGE = 512
# The reasons of a 401 that are about the token, not about missing credentials (RFC 6750).
_INVALID_TOKEN = frozenset({"TOKEN_EXPIRED", "TOKEN_INVALID", "REFRESH_TOKEN", "SIGNATURE_INVALID"})


@dataclass(frozen=True, slots=True)
class _Reworded:
    """An error whose message over HTTP contains a detail of the ErrorInfo."""

    problem: Problem
    detail: str


_REWORDED: Mapping[str, _Reworded] = {
    "SNAPSHOT_EXISTS": _Reworded(Problem("PR409-DV-0002", "File [{}.zip] already exists."), "name"),
    "UNEXPECTED": _Reworded(errors.UNEXPECTED, "error_id"),
}

# The answer for each gRPC status if the server sent no code. A status that is missing here is an unexpected error.
_BY_STATUS: Mapping[grpc.StatusCode, Problem] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.REFUSED_AS_INVALID,
    grpc.StatusCode.OUT_OF_RANGE: errors.REFUSED_AS_INVALID,
    grpc.StatusCode.UNAUTHENTICATED: errors.REFUSED_AS_UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: errors.REFUSED_AS_FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: errors.REFUSED_AS_NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: errors.REFUSED_AS_CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: errors.REFUSED_AS_CONFLICT,
    grpc.StatusCode.ABORTED: errors.REFUSED_AS_CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.TOO_MANY,
    grpc.StatusCode.UNAVAILABLE: errors.SERVER_AWAY,
    # grpc may end a call with CANCELLED if the server shuts down before it has begun the call.
    grpc.StatusCode.CANCELLED: errors.SERVER_AWAY,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DEADLINE,
}
# The statuses that grpc itself returns when the server's code was not involved.
_BY_GRPC_ITSELF = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def from_call(error: grpc.RpcError) -> ApiError | None:
    """Return the error that a failed call means over HTTP, or None if the error is unexpected."""
    info = client.error_info(error)
    if info is None:
        return ApiError(_BY_STATUS[error.code()]) if error.code() in _BY_GRPC_ITSELF else None
    reworded = _REWORDED.get(info.reason)
    if reworded is not None:
        return ApiError(reworded.problem, info.metadata.get(reworded.detail, ""))
    problem = _sent_problem(error, info) or _BY_STATUS.get(error.code())
    return None if problem is None else ApiError(problem)


def _sent_problem(error: grpc.RpcError, info: ErrorInfo) -> Problem | None:
    """Return the code and message that the server sent, or None if they are malformed or contradict the gRPC status."""
    code, message = info.metadata.get("personium_code", ""), error.details() or ""
    match = _CODE.fullmatch(code)
    if match is None or int(match[1]) != _http_status(error.code()):
        return None
    if not (0 < len(message) <= _LONGEST_MESSAGE and message.isprintable()):
        return None
    retry = client.retry_seconds(error) > 0
    return Problem(code, message, invalid_token=info.reason in _INVALID_TOKEN, retry=retry)


def _http_status(status: grpc.StatusCode) -> int:
    problem = _BY_STATUS.get(status)
    return 500 if problem is None else problem.status
