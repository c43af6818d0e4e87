"""Callers, and an exporter, that keep working while servers are replaced."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import grpc

from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest, Outcome, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, HandExporter, answered, eventually

T = TypeVar("T")

# The requests that each caller sends in a second.
REQUESTS_A_SECOND = 25
NO_RETRIES = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass
class Caller:
    """A caller that sends requests at a steady pace, and counts the outcomes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def run(self, over: threading.Event) -> None:
        due, number = time.monotonic(), 0
        while not over.wait(max(0.0, due - time.monotonic())):
            due, number = due + 1 / REQUESTS_A_SECOND, number + 1
            begun = steady()
            self.outcomes[self.ask(number)] += 1
            self.slowest = max(self.slowest, steady() - begun)
        self.close()

    def ask(self, number: int) -> str:
        raise NotImplementedError

    def close(self) -> None:
        """Close every connection."""


@dataclass
class GrpcCaller(Caller):
    """A caller over one gRPC channel that retries nothing."""

    target: str = ""

    def __post_init__(self) -> None:
        self.channel = client.channel(self.target, service_config=NO_RETRIES)
        self.stub = CellExportServiceStub(self.channel)

    def ask(self, number: int) -> str:
        try:
            self.stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN), timeout=5)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"

    def close(self) -> None:
        self.channel.close()


@dataclass
class HttpCaller(Caller):
    """A caller over HTTP that alternates between gateways, and keeps its connections open.

    If a gateway refuses the connection, the caller goes to the next gateway. If an idle connection had been closed, it
    sends the request once more. It retries nothing else.
    """

    ports: list[int] = field(default_factory=list)
    connections: dict[int, http.client.HTTPConnection] = field(default_factory=dict)

    def ask(self, number: int) -> str:
        first = number % len(self.ports)
        for port in self.ports[first:] + self.ports[:first]:
            try:
                return self.ask_one(port)
            except ConnectionRefusedError:
                self.forget(port)
        return "refused by every gateway"

    def close(self) -> None:
        for port in list(self.connections):
            self.forget(port)

    def ask_one(self, port: int) -> str:
        idle = port in self.connections
        try:
            return self.exchange(port)
        except ConnectionRefusedError:
            raise
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            self.forget(port)
            return self.exchange(port) if idle else repr(error)

    def exchange(self, port: int) -> str:
        connection = self.connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.connect()
            self.connections[port] = connection
        connection.request("GET", "/demo/__export", headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        body = response.read().decode()
        if response.will_close:
            self.forget(port)
        return f"{response.status} {body}"

    def forget(self, port: int) -> None:
        connection = self.connections.pop(port, None)
        if connection is not None:
            connection.close()


def export(target: str, over: threading.Event) -> None:
    """Run an export of the cell `demo` until `over` is set. Failed calls are retried, as exporters do."""
    sequence = 0
    with client.channel(target) as channel:
        exporter, starting = HandExporter(channel), CellExportServiceStub(channel)
        start = partial(starting.StartCellExport, StartCellExportRequest(cell="demo"), timeout=5)
        eventually(lambda: answered(partial(start, metadata=exporter.metadata)))
        claimed = eventually(lambda: passing(lambda: exporter.claim(request_id="0123456789abcdef")))
        while not over.wait(0.1):
            sequence += 1
            eventually(partial(answered, exporter.report, claimed, sequence, sequence, 1000))
        eventually(lambda: answered(exporter.finish, claimed, Outcome.RESULT_SUCCEEDED))


def passing(call: Callable[[], T]) -> T | None:
    """Return the result of a call; None if a server that is shutting down has dropped the call."""
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise
        return None
