"""Calls to the server: which failures may pass, why a call failed, and how long to wait before a retry."""

import random

import grpc

from cellexport import client
from cellexport.environment import SecretSource

# The average pause before a retry.
_RETRY_SECONDS = 0.5
# The gRPC statuses of failures that may be temporary. After any other status a retry is pointless: the exporter gives
# the export up, and the lease expires.
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


def is_transient(error: grpc.RpcError, token: SecretSource) -> bool:
    """Return whether a retry of the call may succeed. After a refused token it may if the token is from a file, where
    somebody may replace the token.
    """
    return error.code() in _TRANSIENT or (token.renewable and error.code() is grpc.StatusCode.UNAUTHENTICATED)


def metadata(token: SecretSource) -> client.Metadata:
    """Return the metadata of a call, with the latest token from the source."""
    return client.bearer(token.latest().reveal())


def reason(error: grpc.RpcError) -> str:
    """Return why a call failed: the server's reason, or the name of the gRPC status if there is no reason."""
    info = client.error_info(error)
    return error.code().name if info is None else info.reason


def retry_pause() -> float:
    """Return a random pause before a retry, in seconds, so that exporters don't all retry at the same moment."""
    return _RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret depends on it
