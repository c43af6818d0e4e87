"""Facts about a call from gRPC's context: its metadata, its time, and its end."""

from collections.abc import Callable
from typing import Any

import grpc

from cellexport import request_key
from cellexport.program import tracing
from cellexport.program.tracing import TRACEPARENT

Context = grpc.aio.ServicerContext[Any, Any]

# A call that is cancelled within this many seconds before its deadline ends with DEADLINE_EXCEEDED: a caller cancels
# its call at the deadline, and by the server's clock that may be a little early.
_DEADLINE_SECONDS = 0.05


def traceparent(metadata: Any) -> str | None:
    """Return the `traceparent` in a call's metadata, or None if it is missing or invalid."""
    return tracing.valid(single(metadata, TRACEPARENT))


def single(metadata: Any, name: str) -> str | None:
    """Return the metadata's value of that name if there is exactly one and it is text, or else None."""
    values = [value for key, value in metadata if key == name]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def key(context: Context, name: str) -> dict[str, str]:
    """Return `{name: request key}` with the key assigned to the call, or the caller's own if none was assigned yet.

    Return an empty dictionary if neither is there, or if the key is invalid.
    """
    found = single(context.trailing_metadata() or (), request_key.METADATA)
    found = found or single(context.invocation_metadata() or (), request_key.METADATA)
    return {name: found} if found and request_key.is_valid(found) else {}


def is_late(context: Context, *, within_seconds: float = 0.0) -> bool:
    """Return whether the caller's deadline has passed, or passes within `within_seconds`.

    gRPC reads the wall clock twice to compute the remaining time. A clock that is set between the two reads makes a
    deadline look passed. That doesn't happen twice in a row, so two results must agree.
    """
    results = (context.time_remaining() for _ in range(2))
    return all(remaining is not None and remaining <= within_seconds for remaining in results)


def when_over(context: Context, end: Callable[[Context], None]) -> None:
    """Call `end` when the call is over: its answer was sent, or its caller has left."""
    context.add_done_callback(end)  # type: ignore[arg-type] # grpc passes the context; its stubs are wrong


def code(context: Context, *, raised: bool) -> grpc.StatusCode:
    """Return the gRPC status of a call that is over.

    Args:
        raised: whether the method raised an exception.
    """
    if not context.done():
        # No status was sent: the caller cancelled the call.
        late = is_late(context, within_seconds=_DEADLINE_SECONDS)
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    sent = context.code()
    if isinstance(sent, grpc.StatusCode) and sent is not grpc.StatusCode.OK:
        return sent
    return grpc.StatusCode.UNKNOWN if raised else grpc.StatusCode.OK
