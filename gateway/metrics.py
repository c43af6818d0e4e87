"""The gateway's metrics: a protocol, and the implementation that counts nothing."""

from typing import Protocol

import grpc


class Metrics(Protocol):
    """The counters of requests, and of calls to the server."""

    def begin_request(self) -> None:
        """Count a request in flight."""

    def end_request(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count an answered request. Values that a caller invents must arrive here as `other`."""

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        """Count a finished call to the server. `path` is `/service/method`."""


class NoMetrics:
    """Metrics that are turned off."""

    def begin_request(self) -> None:
        return

    def end_request(self, method: str, route: str, status: str, seconds: float) -> None:
        return

    def count_call(self, path: str, code: grpc.StatusCode) -> None:
        return
