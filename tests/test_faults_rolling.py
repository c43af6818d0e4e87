"""Servers and gateways are replaced one after the other, and no caller notices."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from redis_server import DURABLE, RedisServer
from redis_server import running as running_redis
from unit import TOKEN, HandExporter, Program, Unit, answered, eventually, free_port, meanwhile, needs
from watchers import following

from cellexport import client
from cellexport.v1.cell_export_pb2 import Outcome, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub

T = TypeVar("T")

ROUNDS = 10
CALLERS = 8
# Of each.
REQUESTS_A_SECOND = 25


@dataclass
class Caller:
    """Asks one gateway after the other, over connections that are kept.

    It goes to the next gateway where a connection is refused, and asks once more where one that was idle had been
    closed. Nothing else is tried again.
    """

    ports: list[int]
    connections: dict[int, http.client.HTTPConnection] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def run(self, over: threading.Event) -> None:
        due, number = time.monotonic(), 0
        while not over.wait(max(0.0, due - time.monotonic())):
            due, number = due + 1 / REQUESTS_A_SECOND, number + 1
            begun = time.monotonic()
            first = number % len(self.ports)
            self.outcomes[self.ask(self.ports[first:] + self.ports[:first])] += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)
        for connection in self.connections.values():
            connection.close()

    def ask(self, ports: list[int]) -> str:
        for port in ports:
            try:
                return self.ask_one(port)
            except ConnectionRefusedError:
                self.forget(port)
        return "refused by every gateway"

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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis", *DURABLE) as server:
        yield server


@pytest.mark.fault("F11")
@pytest.mark.long
@pytest.mark.timeout(150)
@needs("redis-server")
def test_rolling_restarts_of_servers_and_gateways_fail_no_request(unit: Unit, store: RedisServer) -> None:
    unit.settings["CELLEXPORT_STORE"] = store.url
    servers, gateways = [free_port(), free_port()], [free_port(), free_port()]
    unit.settings["CELLEXPORT_GRPC_TARGET"] = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in servers)

    def start_server(port: int) -> Program:
        server = unit.start_server(CELLEXPORT_GRPC_LISTEN=f"127.0.0.1:{port}")
        eventually(lambda: any(line.get("status") == "SERVING" for line in server.lines()))
        return server

    def start_gateway(port: int) -> Program:
        unit.http_port = port
        gateway = unit.start_gateway()
        eventually(lambda: unit.http(path="/readyz", token=None).status == 200)
        return gateway

    programs = {port: start_server(port) for port in servers}
    programs |= {port: start_gateway(port) for port in gateways}
    eventually(store.is_settled)
    eventually(lambda: unit.http().status == 200)
    target = unit.settings["CELLEXPORT_GRPC_TARGET"]
    callers = [Caller(gateways) for _ in range(CALLERS)]
    begun = time.monotonic()
    with ExitStack() as stack:
        followers = [stack.enter_context(following(unit, target=target)) for _ in range(4)]
        for caller in callers:
            stack.enter_context(meanwhile(caller.run))
        with meanwhile(partial(export, target)):
            for _ in range(ROUNDS):
                for ports, start in ((servers, start_server), (gateways, start_gateway)):
                    for port in ports:
                        assert programs[port].terminate() == 0
                        programs[port] = start(port)
        newest = eventually(lambda: unit.get(port=servers[0]))
        assert newest.last_outcome.result == Outcome.RESULT_SUCCEEDED
        for follower in followers:
            assert eventually(lambda f=follower: f.statuses()[-1].cell_export == newest)  # type: ignore[misc]
    seconds = time.monotonic() - begun
    outcomes = sum((caller.outcomes for caller in callers), Counter[str]())
    assert {outcome[:3] for outcome in outcomes} == {"200"}
    # Two processors that also start a program each second may not manage 200.
    assert outcomes.total() / seconds > 100
    assert max(caller.slowest for caller in callers) < 3
    for follower in followers:
        follower.judge()
        percents = [message.cell_export.exportation.progress_percent for message in follower.statuses()[1:-1]]
        assert percents == sorted(percents)
        assert len(set(percents)) > 10


def export(target: str, over: threading.Event) -> None:
    """An export as long as the restarts last. Whatever fails on the way is tried again, as exporters do."""
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
    """What comes of a call; None where a server that is ending let go of it."""
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise
        return None
