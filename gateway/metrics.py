"""The gateway's metrics."""

from typing import final

import grpc
from prometheus_client import Counter, Gauge, Histogram

from cellexport.program.metrics_server import new_registry

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@final
class Metrics:
    """All of them, in a registry of their own. No label is anything that a caller chose."""

    def __init__(self) -> None:
        self.registry = registry = new_registry()
        self._requests = Counter(
            "http_server_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "How long requests took.",
            ("method", "route"),
            registry=registry,
            buckets=_BUCKETS,
        )
        self.in_flight = Gauge("http_server_requests_in_flight", "Requests being served.", registry=registry)
        self._calls = Counter(
            "grpc_client_handled",
            "Calls to the server that ended, by status.",
            ("grpc_type", "grpc_service", "grpc_method", "grpc_code"),
            registry=registry,
        )

    def count_request(self, method: str, route: str, status: str, seconds: float) -> None:
        """Take in a request. The names are of a few: what a caller makes up is `other` by now."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        """Take in a call of the method with that path."""
        _, service, method = path.split("/")
        self._calls.labels("unary", service, method, code.name).inc()
