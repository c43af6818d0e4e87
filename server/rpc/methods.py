"""Descriptions of the gRPC methods, from which `rpc.guard` builds the check around each method.

A description holds the privilege that a caller needs, the function that serves the call, and limits: the longest
duration of a call, the most cells in it, or the most open streams.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from server.auth.rights import Privilege
from server.refusals import Refused
from server.rpc.admission import Call
from server.rpc.stream_limit import StreamLimit


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """A method with one answer.

    Args:
        privilege: what the caller needs on the cell of the request, or on the unit if the request names no cell.
        most_seconds: the longest that a call may take, whatever deadline the caller sets.
        ends_with_token: whether the call ends when the caller's token expires. Only for long waits: a short call has
            already taken effect by then, and must not be reported as refused.
    """

    privilege: Privilege
    method: Callable[[Any, Call], Awaitable[Message]]
    most_seconds: float = 10.0
    ends_with_token: bool = False


@dataclass(frozen=True, slots=True)
class BatchMethod:
    """A method about many cells. It is called once for each cell; a refusal for one cell leaves the others alone.

    Args:
        privilege: what the caller needs on each cell.
        answer: makes the response from the cells and the message or refusal of each.
        most_cells: the longest list of cells that is accepted.
        most_seconds: the longest that the whole batch may take.
    """

    privilege: Privilege
    method: Callable[[str, Call], Awaitable[Message]]
    answer: Callable[[Sequence[tuple[str, Any | Refused]]], Message]
    most_cells: int
    most_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """A method with a stream of answers. It ends when the caller's token expires.

    Args:
        privilege: what the caller needs on the cell; checked again before each message.
        limit: how many streams may be open at once.
    """

    privilege: Privilege
    method: Callable[[Any, Call], AsyncGenerator[Message, None]]
    limit: StreamLimit


GuardedMethod = UnaryMethod | BatchMethod | StreamMethod
