"""The metrics of a program: a registry of its own, and the HTTP port that serves it."""

import asyncio
import logging
import platform
import socket
import threading
from importlib.metadata import version

import grpc
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from cellexport.address import Address

_PATH = "/metrics"
# The limits: the seconds of one scrape, the bytes of its request, and the connections that are open at the same time.
_SECONDS = 5.0
_LONGEST_REQUEST = 8 * 1024
_MOST_CONNECTIONS = 16

_log = logging.getLogger(__name__)


def new_registry() -> CollectorRegistry:
    """Return a registry with metrics of the process, the interpreter and the build."""
    # Otherwise each counter and histogram has a second series, with the time of its creation.
    disable_created_metrics()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge(
        "cellexport_build_info", "The build of this program.", ("version", "python", "grpc"), registry=registry
    )
    build.labels(version("cellexport"), platform.python_version(), grpc.__version__).set(1)
    return registry


class MetricsServer:
    """Answers `GET /metrics` over HTTP, from a thread of its own.

    A connection lasts at most 5 seconds, and at most 16 connections are open, so that slow clients don't block others.
    """

    def __init__(self, registry: CollectorRegistry, listening: socket.socket) -> None:
        self._registry = registry
        self._listening = listening
        self._connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, registry: CollectorRegistry, address: Address, *, shared: bool = False) -> "MetricsServer":
        """Start a server that listens on the address.

        Args:
            shared: whether a new worker of the program may listen on the same address, to take over from this one.

        Raises:
            OSError: if the address can't be listened on.
        """
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return cls(registry, socket.create_server((address.host, address.port), family=family, reuse_port=shared))

    def close(self) -> None:
        """Close the port and all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        serving = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._listening, limit=_LONGEST_REQUEST)
        )
        try:
            self._loop.run_forever()
        finally:
            serving.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _MOST_CONNECTIONS:
                async with asyncio.timeout(_SECONDS):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _log.debug("metrics client left or was too slow")
        finally:
            self._connections -= 1
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != _PATH.encode():
            return _response("404 Not Found", b"")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD\r\n")
        body = generate_latest(self._registry)
        return _response("200 OK", body, f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n", whole=method == b"GET")


def _response(status: str, body: bytes, headers: str = "", *, whole: bool = True) -> bytes:
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (body if whole else b"")
