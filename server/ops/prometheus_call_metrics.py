"""The metrics of calls, under the names that dashboards for gRPC use (those of go-grpc-prometheus)."""

from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from server.ops.metrics import MethodMetrics

_METHOD = ("grpc_type", "grpc_service", "grpc_method")
# The buckets for the duration of calls, in seconds. A status takes less than a millisecond; a claim waits up to half a
# minute for an export.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_UNKNOWN = ("unknown", "unknown", "unknown")


class PrometheusCallMetrics:
    """The counters of calls."""

    enabled = True

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started", "Calls that began.", _METHOD, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls that ended, by status.", (*_METHOD, "grpc_code"), registry=registry
        )
        self._received = Counter("grpc_server_msg_received", "Messages received.", _METHOD, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages sent.", _METHOD, registry=registry)
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of calls; for streams from beginning to end.",
            _METHOD,
            registry=registry,
            buckets=_BUCKETS,
        )

    def of(self, kind: str, service: str, method: str) -> MethodMetrics:
        labels = (kind, service, method)
        return _PrometheusMethodMetrics(
            started=self._started.labels(*labels).inc,
            received=self._received.labels(*labels).inc,
            sent=self._sent.labels(*labels).inc,
            took=self._seconds.labels(*labels).observe,
            handled=lambda code: self._handled.labels(*labels, code.name).inc,
        )

    def count_unknown(self) -> None:
        self._handled.labels(*_UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.name).inc()


class _PrometheusMethodMetrics:
    def __init__(
        self,
        *,
        started: Callable[[], None],
        received: Callable[[], None],
        sent: Callable[[], None],
        took: Callable[[float], None],
        handled: Callable[[grpc.StatusCode], Callable[[], None]],
    ) -> None:
        self._started = started
        self._received = received
        self._sent = sent
        self._took = took
        self._find_handled = handled
        self._handled: dict[grpc.StatusCode, Callable[[], None]] = {}

    def started(self) -> None:
        self._started()

    def received(self) -> None:
        self._received()

    def sent(self) -> None:
        self._sent()

    def ended(self, code: grpc.StatusCode, seconds: float) -> None:
        count = self._handled.get(code)
        if count is None:
            count = self._handled[code] = self._find_handled(code)
        count()
        self._took(seconds)
