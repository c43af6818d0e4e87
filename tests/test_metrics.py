"""Metrics: every call is counted once, by the way it ended. Callers can't add names of their own."""

import asyncio
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cellexport import client
from cellexport.v1.cell_export_pb2 import Outcome, WatchCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from cellexport.v1.exporter_pb2 import ClaimExportRequest
from server.ops.call_observer import CallObserver
from server.ops.prometheus_call_metrics import PrometheusCallMetrics
from unit import CUT_OFF, ROOT, TOKEN, HandExporter, Unit, eventually, free_port

Labels = dict[str, str]
Samples = list[tuple[str, Labels, float]]


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    return sum(v for n, have, v in found if n == name and labels.items() <= have.items())


def handled(found: Samples, method: str) -> dict[str, float]:
    """Return the number of ended calls of a gRPC method, by gRPC status."""
    name = "grpc_server_handled_total"
    return {have["grpc_code"]: v for n, have, v in found if n == name and have["grpc_method"] == method}


def states(port: int) -> dict[str, float]:
    return {have["state"]: v for n, have, v in samples(scrape(port)) if n == "cellexport_exports"}


@pytest.fixture
def server_port(unit: Unit) -> int:
    port = free_port()
    unit.settings["CELLEXPORT_GRPC_METRICS_LISTEN"] = f"127.0.0.1:{port}"
    return port


@pytest.fixture
def gateway_port(unit: Unit) -> int:
    port = free_port()
    unit.settings["CELLEXPORT_HTTP_METRICS_LISTEN"] = f"127.0.0.1:{port}"
    return port


def test_calls_requests_and_exports_are_counted_as_they_end(unit: Unit, server_port: int, gateway_port: int) -> None:
    server = unit.start_server()
    unit.start_gateway()

    for token, path in ((TOKEN, "/demo/__export"), ("wrong", "/demo/__export"), (TOKEN, "/canary-cell/__export")):
        unit.http(path=path, token=token)
    unit.http("CANARY", "/canary/path", headers={"X-Personium-RequestKey": "canary-key"})
    unit.http("POST", headers={"X-HTTP-Method-Override": "HEAD"})

    with unit.channel() as channel:
        hand = HandExporter(channel)
        request = ClaimExportRequest(request_id="0123456789abcdef", wait=Duration(seconds=20))
        waiting = hand.stub.ClaimExport.future(request, metadata=hand.metadata, timeout=60)
        begun = "grpc_server_started_total"
        eventually(lambda: value(samples(scrape(server_port)), begun, grpc_method="ClaimExport") == 1)
        waiting.cancel()
        with pytest.raises(grpc.RpcError):
            hand.stub.ClaimExport(request, metadata=hand.metadata, timeout=0.3)

        unknown: Any = channel.unary_unary("/canary.Service/Canary")
        with pytest.raises(grpc.RpcError):
            unknown(b"")

        unit.begin("one")
        claimed = hand.must_claim()
        eventually(lambda: states(server_port) == {"queued": 0, "running": 1, "stalled": 0})
        hand.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_NO_SPACE)
    eventually(lambda: states(server_port) == {"queued": 0, "running": 0, "stalled": 0})

    text = scrape(server_port)
    found = samples(text)

    assert handled(found, "GetCellExport") == {"OK": 2, "UNAUTHENTICATED": 1, "NOT_FOUND": 1}
    assert handled(found, "ClaimExport") == {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1, "OK": 1}
    assert handled(found, "unknown") == {"UNIMPLEMENTED": 1}
    assert value(found, "grpc_server_started_total", grpc_method="GetCellExport") == 4
    assert value(found, "grpc_server_msg_received_total", grpc_method="GetCellExport") == 4
    assert value(found, "grpc_server_msg_sent_total", grpc_method="GetCellExport") == 2
    assert value(found, "grpc_server_handling_seconds_count", grpc_method="GetCellExport") == 4
    assert value(found, "cellexport_exports_finished_total", result="failed", reason="no_space") == 1
    assert value(found, "cellexport_store_seconds_count", operation="read", outcome="ok") > 0

    web = scrape(gateway_port)
    found = samples(web)
    requests = {
        (labels["method"], labels["route"], labels["status"]): count
        for name, labels, count in found
        if name == "http_server_requests_total"
    }

    assert requests == {
        ("GET", "/<cell>/__export", "200"): 1,
        ("GET", "/<cell>/__export", "401"): 1,
        ("GET", "/<cell>/__export", "404"): 1,
        ("HEAD", "/<cell>/__export", "200"): 1,
        ("other", "other", "404"): 1,
    }
    assert value(found, "http_server_request_duration_seconds_count") == 5
    assert value(found, "http_server_requests_in_flight") == 0
    assert value(found, "grpc_client_handled_total", grpc_code="NOT_FOUND") == 1
    assert value(found, "process_start_time_seconds") > 0

    for word in ("canary", "demo", "one"):
        assert not re.search(rf'"[^"]*{word}[^"]*"', text + web)
    # Callers that disconnected must cause no warning in the server's log.
    assert {line["level"] for line in server.lines()} == {"info"}


def test_a_watch_is_one_call_for_all_of_its_time(unit: Unit, server_port: int) -> None:
    unit.start_server()
    with unit.channel() as channel:
        stub = CellExportServiceStub(channel)
        watch = stub.WatchCellExport(WatchCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN))
        next(iter(watch))

        # The server counts a message after writing it, so the client may have read the message before it is counted.
        eventually(lambda: value(samples(scrape(server_port)), "grpc_server_msg_sent_total"))
        found = samples(scrape(server_port))
        assert value(found, "cellexport_watches") == 1
        assert (handled(found, "WatchCellExport"), value(found, "grpc_server_msg_sent_total")) == ({}, 1)

        watch.cancel()
        eventually(lambda: handled(samples(scrape(server_port)), "WatchCellExport") == {"CANCELLED": 1})
        refused = stub.WatchCellExport(WatchCellExportRequest(cell="demo"), metadata=client.bearer("wrong"))
        with pytest.raises(grpc.RpcError):
            next(iter(refused))

    # The server counts a call once the call's task is done, so the client may have seen the end before it is counted.
    ended = {"CANCELLED": 1, "UNAUTHENTICATED": 1}
    eventually(lambda: handled(samples(scrape(server_port)), "WatchCellExport") == ended)
    assert value(samples(scrape(server_port)), "cellexport_watches") == 0


def test_every_metric_is_in_the_docs_and_the_other_way_round(unit: Unit, server_port: int, gateway_port: int) -> None:
    unit.start_server()
    unit.start_gateway()
    unit.http()

    table = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    documented = {(name, program, kind) for name, programs, kind in table for program in programs.split(", ")}
    shown = {
        # The parser of the metrics omits the suffix `_total` of a counter's name.
        (family.name + ("_total" if family.type == "counter" else ""), program, family.type)
        for program, port in (("server", server_port), ("gateway", gateway_port))
        for family in text_string_to_metric_families(scrape(port))
        if not family.name.startswith(("process_", "python_"))
    }

    assert documented == shown


def test_events_that_are_lost_are_counted(unit: Unit, server_port: int) -> None:
    unit.start_server(CELLEXPORT_EVENT_LOG="/dev/full")
    unit.get()
    eventually(lambda: value(samples(scrape(server_port)), "cellexport_event_log_lost_total") == 1)


def test_a_port_that_is_taken_is_one_clear_sentence(unit: Unit, server_port: int, gateway_port: int) -> None:
    for module, name, port in (
        ("server", "CELLEXPORT_GRPC_METRICS_LISTEN", server_port),
        ("gateway", "CELLEXPORT_HTTP_METRICS_LISTEN", gateway_port),
    ):
        with socket.create_server(("127.0.0.1", port)):
            program = unit.start(module)
            assert program.process.wait(60) == 2
        message = program.log.read_text()
        assert re.fullmatch(rf"cellexport-\w+: {name}: 127.0.0.1:{port} can't be listened on.+\n", message), message


def test_stuck_clients_of_the_metrics_stop_nobody_and_are_let_go(unit: Unit, server_port: int) -> None:
    unit.start_server()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server_port), 10)) for _ in range(20)]
        clients[0].sendall(b"GET /met")
        assert unit.get().cell == "demo"
        assert all(client.recv(1) == b"" for client in clients[::-1])

    assert "grpc_server_started_total" in scrape(server_port)
    for path in ("", "/metrics/", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server_port}{path}", timeout=60)


def test_a_worker_that_is_replaced_serves_its_metrics_again(unit: Unit, gateway_port: int) -> None:
    gateway = unit.start_gateway()
    before = eventually(lambda: started_at(gateway_port))
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    for worker in (child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()):
        os.kill(int(worker), signal.SIGKILL)
    eventually(lambda: started_at(gateway_port) not in (None, before))


def started_at(port: int) -> float | None:
    """Return the start time of the process that serves metrics on this port; None if no process does."""
    try:
        return value(samples(scrape(port)), "process_start_time_seconds")
    except CUT_OFF:
        return None


# Metrics of streaming methods, in each style in which gRPC lets servers implement them. The contract's own methods
# don't use all of these styles yet.


class Streams:
    """Streaming methods of a test server that send messages, and then end as the request says."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()

    async def _then(self, context: Any, what: bytes) -> None:
        self.sent.set()
        if what == b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "as asked")
        if what == b"crash":
            raise RuntimeError("as asked")
        if what == b"wait":
            await asyncio.Event().wait()

    async def yielding(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"
        await self._then(context, request)

    async def writing(self, request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(b"x")
        await self._then(context, request)

    async def flooding(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 60_000
            self.sent.set()

    async def echoing(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


@asynccontextmanager
async def serving_streams(registry: CollectorRegistry) -> AsyncIterator[tuple[Streams, grpc.aio.Channel]]:
    streams = Streams()
    server = grpc.aio.server(interceptors=[CallObserver(None, PrometheusCallMetrics(registry))])
    handlers: dict[str, Any] = {
        name: grpc.unary_stream_rpc_method_handler(getattr(streams, name))
        for name in ("yielding", "writing", "flooding")
    }
    handlers["echoing"] = grpc.stream_stream_rpc_method_handler(streams.echoing)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Streams", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield streams, channel
    await server.stop(None)


def observed(registry: CollectorRegistry) -> Samples:
    return [(s.name, s.labels, s.value) for family in registry.collect() for s in family.samples]


async def until(check: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, check)


@pytest.mark.parametrize("method", ["yielding", "writing"])
@pytest.mark.parametrize(
    ("what", "code"), [(b"end", "OK"), (b"abort", "ABORTED"), (b"crash", "UNKNOWN"), (b"wait", "CANCELLED")]
)
def test_a_stream_is_counted_once_as_it_ended(method: str, what: bytes, code: str) -> None:
    registry = CollectorRegistry()

    async def run() -> None:
        async with serving_streams(registry) as (streams, channel):
            begin: Any = channel.unary_stream(f"/test.Streams/{method}")
            call = begin(what)
            if what == b"wait":
                await streams.sent.wait()
                call.cancel()
            else:
                assert (await ended(call)).name == code
            await until(lambda: handled(observed(registry), method) == {code: 1})
        found = observed(registry)
        assert handled(found, method) == {code: 1}
        assert value(found, "grpc_server_started_total", grpc_type="server_stream") == 1
        assert value(found, "grpc_server_msg_received_total") == 1
        assert value(found, "grpc_server_msg_sent_total") == 3
        assert value(found, "grpc_server_handling_seconds_count") == 1

    asyncio.run(run())


async def ended(call: Any) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.RpcError:
        pass
    code: Awaitable[grpc.StatusCode] = call.code()
    return await code


def test_a_stream_that_is_cancelled_or_late_while_it_writes_is_counted_so() -> None:
    registry = CollectorRegistry()

    async def run() -> None:
        async with serving_streams(registry) as (streams, channel):
            flood: Any = channel.unary_stream("/test.Streams/flooding")
            call = flood(b"")
            await streams.sent.wait()
            call.cancel()
            await until(lambda: handled(observed(registry), "flooding") == {"CANCELLED": 1})
            flood(b"", timeout=0.2)
            await until(lambda: handled(observed(registry), "flooding") == {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1})
            echo: Any = channel.stream_stream("/test.Streams/echoing")
            assert [answer async for answer in echo(iter([b"a", b"b"]))] == [b"a", b"b"]
            await until(lambda: handled(observed(registry), "echoing") == {"OK": 1})
        assert value(observed(registry), "grpc_server_msg_received_total", grpc_type="bidi_stream") == 2

    asyncio.run(run())
