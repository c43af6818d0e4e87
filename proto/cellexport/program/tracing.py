"""Who a call belongs to across programs: W3C `traceparent`, and spans where `CELLEXPORT_TRACES` is on.

Where it is off, nothing is recorded; a valid `traceparent` is passed on all the same, and its trace id is in the log.
"""

import re
from collections.abc import Mapping
from typing import Protocol

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
# What W3C asks for at the least, and we take at the most.
_LONGEST_STATE = 512

Attributes = Mapping[str, str | int]


def valid(traceparent: str | None) -> str | None:
    """The `traceparent` if it is one, whole and alone; or else None."""
    return traceparent if traceparent and _VALID.fullmatch(traceparent) else None


def trace_id(traceparent: str) -> str:
    """The trace's id in a valid `traceparent`: 32 hexadecimal digits."""
    return traceparent[3:35]


def valid_state(tracestate: str | None) -> str | None:
    """A `tracestate` that may be handed to who reads them; None if it is none, or longer than 512 characters."""
    printable = tracestate and tracestate.isascii() and tracestate.isprintable()
    return tracestate if printable and len(tracestate or "") <= _LONGEST_STATE else None


class Span(Protocol):
    """A piece of work that somebody waits for."""

    @property
    def traceparent(self) -> str:
        """What to tell whoever works for it."""

    def end(self, attributes: Attributes, *, failed: bool, name: str | None = None) -> None:
        """The work is over. It may be called once.

        Args:
            name: a better one than that which it began with, where that became known only meanwhile.
        """


class Spans(Protocol):
    """Where spans come from."""

    def serve(self, name: str, traceparent: str | None, tracestate: str | None, attributes: Attributes) -> Span:
        """Begin to serve a call.

        Args:
            traceparent: the caller's, valid, if it has said one.
            tracestate: what came along with it.
        """

    def close(self) -> None:
        """Bring what has ended to where it goes, for a second at most."""
