"""The gateway's metrics for Prometheus."""

from typing import final

import grpc
from prometheus_client import Counter, Gauge, Histogram

from cellexport.program.metrics_server import new_registry

# The upper bounds of the histogram of durations, in seconds.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@final
class PrometheusMetrics:
    """The gateway's metrics, in their own registry. No label holds a value that a caller chose freely."""

    def __init__(self) -> None:
        self.registry = registry = new_registry()
        self._requests = Counter(
            "http_server_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "Duration of requests.",
            ("method", "route"),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._in_flight = Gauge("http_server_requests_in_flight", "Requests being served.", registry=registry)
        self._calls = Counter(
            "grpc_client_handled",
            "Finished calls to the server, by status.",
            ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
            registry=registry,
        )

    def begin_request(self) -> None:
        self._in_flight.inc()

    def end_request(self, method: str, route: str, status: str, seconds: float) -> None:
        self._in_flight.dec()
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        _, service, method = path.split("/")
        self._calls.labels("unary", service, method, code.name).inc()
