"""The ports (interfaces) to the server's metrics, and implementations for a server without metrics."""

from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from server.exports.model import CellRecord, Outcome


class MethodMetrics(Protocol):
    """The counters of one method."""

    def started(self) -> None:
        """Count a call that began."""

    def received(self) -> None:
        """Count a message from the caller."""

    def sent(self) -> None:
        """Count a message to the caller."""

    def ended(self, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that ended."""


class CallMetrics(Protocol):
    """The counters of calls."""

    @property
    def enabled(self) -> bool:
        """Return whether anything is counted."""

    def of(self, kind: str, service: str, method: str) -> MethodMetrics:
        """Return the counters of one method. Call this once for each method: finding counters costs more than counting.

        Args:
            kind: `unary`, `client_stream`, `server_stream` or `bidi_stream`.
        """

    def count_unknown(self) -> None:
        """Count a call of a method that doesn't exist. The caller chose its name, so the name is no label."""


class Metrics(Protocol):
    """The counters of exports, watches, the store and the event log."""

    @property
    def calls(self) -> CallMetrics:
        """Return the counters of calls."""

    def time_store(self, operation: str, outcome: str, seconds: float) -> None:
        """Count an operation of the store, its outcome and its duration."""

    def count_exports(self, records: Sequence[CellRecord]) -> None:
        """Set the numbers of exports in progress. `records` holds all of them."""

    def count_end(self, outcome: Outcome) -> None:
        """Count the end of an export."""

    def count_lost_events(self, number: int) -> None:
        """Add `number` events that could not be written to the event log."""

    def follow_watches(self, count: Callable[[], float]) -> None:
        """Report the number of open watches; `count` returns it at each scrape."""


class _NoMethodMetrics:
    def started(self) -> None:
        return

    def received(self) -> None:
        return

    def sent(self) -> None:
        return

    def ended(self, code: grpc.StatusCode, seconds: float) -> None:
        return


class _NoCallMetrics:
    enabled = False

    def of(self, kind: str, service: str, method: str) -> MethodMetrics:
        return _NoMethodMetrics()

    def count_unknown(self) -> None:
        return


class NoMetrics:
    """Metrics that are turned off."""

    calls: CallMetrics = _NoCallMetrics()

    def time_store(self, operation: str, outcome: str, seconds: float) -> None:
        return

    def count_exports(self, records: Sequence[CellRecord]) -> None:
        return

    def count_end(self, outcome: Outcome) -> None:
        return

    def count_lost_events(self, number: int) -> None:
        return

    def follow_watches(self, count: Callable[[], float]) -> None:
        return
