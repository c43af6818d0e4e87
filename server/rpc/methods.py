"""The description of a method for the guard: its privilege, its implementation, and its bounds."""

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
        privilege: needed on the cell of the request, or on the unit if the request names no cell.
        most_seconds: the longest it may take, whatever deadline the caller sets.
        ends_with_token: whether the call ends when the caller's token expires. Only for long waits: a short call has
            already taken effect by then, and must not be reported as refused.
    """

    privilege: Privilege
    method: Callable[[Any, Call], Awaitable[Message]]
    most_seconds: float = 10.0
    ends_with_token: bool = False


@dataclass(frozen=True, slots=True)
class BatchMethod:
    """A method about many cells. It is called once for each cell, and each cell fails alone.

    Args:
        privilege: needed on each cell.
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
        privilege: needed on the cell, and checked again before each message.
        limit: how many streams may be open at once.
    """

    privilege: Privilege
    method: Callable[[Any, Call], AsyncGenerator[Message, None]]
    limit: StreamLimit


GuardedMethod = UnaryMethod | BatchMethod | StreamMethod
