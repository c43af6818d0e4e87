"""W3C `traceparent`, which connects a call across programs, and the port for spans.

Without `CELLEXPORT_TRACES` nothing is recorded. A valid `traceparent` is still passed on, and its trace id is logged.
"""

import re
from collections.abc import Mapping
from typing import Protocol

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
# In characters. W3C asks for at least as much.
_LONGEST_STATE = 512

Attributes = Mapping[str, str | int]


def valid(traceparent: str | None) -> str | None:
    """Return the `traceparent` if it is valid, else None."""
    return traceparent if traceparent and _VALID.fullmatch(traceparent) else None


def trace_id(traceparent: str) -> str:
    """Return the trace id of a valid `traceparent`: 32 hexadecimal digits."""
    return traceparent[3:35]


def valid_state(tracestate: str | None) -> str | None:
    """Return the `tracestate`, or None if it isn't printable ASCII of at most 512 characters."""
    printable = tracestate and tracestate.isascii() and tracestate.isprintable()
    return tracestate if printable and len(tracestate or "") <= _LONGEST_STATE else None


class Span(Protocol):
    """A span: one unit of work in a trace."""

    @property
    def traceparent(self) -> str:
        """Return the `traceparent` for calls that belong to this span."""

    def end(self, attributes: Attributes, *, failed: bool, name: str | None = None) -> None:
        """End the span. Call this once.

        Args:
            name: replaces the first name, if a better one became known.
        """


class Spans(Protocol):
    """The port that makes spans."""

    def serve(self, name: str, traceparent: str | None, tracestate: str | None, attributes: Attributes) -> Span:
        """Begin the span of a served call.

        Args:
            traceparent: the caller's, if it is valid.
            tracestate: the caller's.
        """

    def close(self) -> None:
        """Send the ended spans, for at most one second."""
