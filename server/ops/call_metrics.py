"""Metrics of calls, under the names that dashboards for gRPC know (those of go-grpc-prometheus)."""

from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

_METHOD = ("grpc_type", "grpc_service", "grpc_method")
# A status takes less than a millisecond, a wait for work half a minute.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_UNKNOWN = ("unknown", "unknown", "unknown")


class CallMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started", "Calls begun.", _METHOD, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended, by status.", (*_METHOD, "grpc_code"), registry=registry
        )
        self._received = Counter("grpc_server_msg_received", "Messages received.", _METHOD, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages sent.", _METHOD, registry=registry)
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "How long calls took, streams from their beginning to their end.",
            _METHOD,
            registry=registry,
            buckets=_BUCKETS,
        )

    def of(self, kind: str, service: str, method: str) -> "MethodMetrics":
        """The metrics of one method. Called once a method: to find them costs more than to count.

        Args:
            kind: `unary`, or which side streams: `client_stream`, `server_stream`, `bidi_stream`.
        """
        labels = (kind, service, method)
        return MethodMetrics(
            started=self._started.labels(*labels).inc,
            received=self._received.labels(*labels).inc,
            sent=self._sent.labels(*labels).inc,
            took=self._seconds.labels(*labels).observe,
            handled=lambda code: self._handled.labels(*labels, code.name).inc,
        )

    def refuse_unknown(self) -> None:
        """A method was called that there is not. Its name is the caller's, and so no label."""
        self._handled.labels(*_UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.name).inc()


class MethodMetrics:
    """The metrics of one method."""

    def __init__(
        self,
        *,
        started: Callable[[], None],
        received: Callable[[], None],
        sent: Callable[[], None],
        took: Callable[[float], None],
        handled: Callable[[grpc.StatusCode], Callable[[], None]],
    ) -> None:
        self.started = started
        self.received = received
        self.sent = sent
        self._took = took
        self._find_handled = handled
        self._handled: dict[grpc.StatusCode, Callable[[], None]] = {}

    def ended(self, code: grpc.StatusCode, seconds: float) -> None:
        count = self._handled.get(code)
        if count is None:
            count = self._handled[code] = self._find_handled(code)
        count()
        self._took(seconds)
