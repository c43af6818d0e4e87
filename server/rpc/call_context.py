"""What a call's context says of it: what it brought, and how it has ended."""

from collections.abc import Callable
from typing import Any

import grpc

from cellexport import request_key
from cellexport.program import tracing
from cellexport.program.tracing import TRACEPARENT

Context = grpc.aio.ServicerContext[Any, Any]

# A caller takes its call back when the deadline passes, and we may hear that a little before ours has.
_DEADLINE_SECONDS = 0.05


def traceparent(metadata: Any) -> str | None:
    return tracing.valid(single(metadata, TRACEPARENT))


def single(metadata: Any, name: str) -> str | None:
    """The value of that name, if there is one, and one alone."""
    values = [value for key, value in metadata if key == name]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def key(context: Context, name: str) -> dict[str, str]:
    """The key that the call was given, or else, as long as it was given none, the one that it brought."""
    found = single(context.trailing_metadata() or (), request_key.METADATA)
    found = found or single(context.invocation_metadata() or (), request_key.METADATA)
    return {name: found} if found and request_key.is_valid(found) else {}


def is_late(context: Context, *, within_seconds: float = 0.0) -> bool:
    """Whether the caller waits no longer, or will not after so many seconds.

    gRPC finds that with two looks at the wall clock, so a clock that is set between them makes a deadline seem over
    that isn't. Such a thing doesn't happen twice in a row.
    """
    looks = (context.time_remaining() for _ in range(2))
    return all(look is not None and look <= within_seconds for look in looks)


def when_over(context: Context, end: Callable[[Context], None]) -> None:
    """Have that called when the call's task is over: its answer is sent, or nobody wants it."""
    context.add_done_callback(end)  # type: ignore[arg-type] # it gets the context, whatever the stubs say


def code(context: Context, *, raised: bool) -> grpc.StatusCode:
    """How a call has ended, when its task is over."""
    if not context.done():
        # No status was sent: the call was taken back.
        late = is_late(context, within_seconds=_DEADLINE_SECONDS)
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    said = context.code()
    if isinstance(said, grpc.StatusCode) and said is not grpc.StatusCode.OK:
        return said
    return grpc.StatusCode.UNKNOWN if raised else grpc.StatusCode.OK
