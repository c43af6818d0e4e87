"""The interface of the gateway's metrics, and its implementation for metrics that are off."""

from typing import Protocol

import grpc


class Metrics(Protocol):
    """Counters of HTTP requests to the gateway, and of gRPC calls from the gateway to the server."""

    def begin_request(self) -> None:
        """Count a request that has begun and is not answered yet."""

    def end_request(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count an answered request. An unknown method or route must be `other`: callers must not create series."""

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        """Count a call to the server that has ended. `path` is `/service/method`."""


class NoMetrics:
    """Metrics that are turned off."""

    def begin_request(self) -> None:
        return

    def end_request(self, method: str, route: str, status: str, seconds: float) -> None:
        return

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        return
