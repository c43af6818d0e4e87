"""What the guard has to know of a method: the privilege that it needs, and its bounds."""

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
    """A method, the privilege that it needs, and how long it may take at the most, whatever the caller allows.

    A long one ends with its caller's token. A short one doesn't: what it has done must not be told as refused.
    """

    privilege: Privilege
    method: Callable[[Any, Call], Awaitable[Message]]
    most_seconds: float = 10.0
    ends_with_token: bool = False


@dataclass(frozen=True, slots=True)
class BatchMethod:
    """A method about many cells, called for each of them. The privilege is needed on each, and each fails alone.

    `answer` makes one message of the cells and what became of each.
    """

    privilege: Privilege
    method: Callable[[str, Call], Awaitable[Message]]
    answer: Callable[[Sequence[tuple[str, Any | Refused]]], Message]
    most_cells: int
    most_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """A method whose answers are many. It ends with its caller's token, and each answer needs the privilege anew."""

    privilege: Privilege
    method: Callable[[Any, Call], AsyncGenerator[Message, None]]
    limit: StreamLimit


GuardedMethod = UnaryMethod | BatchMethod | StreamMethod
