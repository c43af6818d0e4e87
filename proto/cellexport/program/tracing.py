"""The header `traceparent` of W3C Trace Context, which connects a call across programs, and the interface of spans.

If `CELLEXPORT_TRACES` is off, no span is recorded, but a valid `traceparent` is passed on, and its trace id is logged.
"""

import re
from collections.abc import Mapping
from typing import Protocol

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
# The longest `tracestate` that is accepted, in characters. W3C Trace Context asks for at least this many.
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
        """Return the `traceparent` to send with calls that belong to this span."""

    def end(self, attributes: Attributes, *, failed: bool, name: str | None = None) -> None:
        """End the span. Call this once.

        Args:
            name: replaces the name that the span began with; None keeps that name.
        """


class Spans(Protocol):
    """The interface of a maker of spans."""

    def serve(self, name: str, traceparent: str | None, tracestate: str | None, attributes: Attributes) -> Span:
        """Begin the span of a served call.

        Args:
            traceparent: the caller's `traceparent`, if it is valid.
            tracestate: the caller's `tracestate`, if it is valid.
        """

    def close(self) -> None:
        """Send the ended spans, for at most one second."""
