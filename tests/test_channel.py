"""The connections between client and server: retries, pings, and the maximum age."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import grpc
import pytest

from cellexport import client
from cellexport.environment import Environment
from cellexport.v1 import cell_export_pb2, exporter_pb2
from chaosproxy import ChaosProxy
from server.rpc.listener import GrpcListener
from unit import PREFACE, HandExporter, Unit, answered, eventually, frame, meanwhile

GOAWAY, PING, SETTINGS = 7, 6, 4


def test_only_what_may_be_done_twice_is_tried_again() -> None:
    config = json.loads(files("cellexport").joinpath("service_config.json").read_text())
    named = {
        (name["service"], name["method"])
        for method in config["methodConfig"]
        if "retryPolicy" in method
        for name in method["name"]
    }
    services = [
        file.DESCRIPTOR.services_by_name[name]
        for file, name in ((cell_export_pb2, "CellExportService"), (exporter_pb2, "ExporterService"))
    ]
    methods = {(service.full_name, method.name) for service in services for method in service.methods}

    assert {method for _, method in methods - named if not method.startswith("Watch")} == {
        "StartCellExport",
        "CancelCellExport",
    }


def test_a_report_whose_connection_breaks_is_sent_again_and_counts_once(unit: Unit) -> None:
    unit.start_server()
    unit.begin()

    with ChaosProxy(unit.grpc_port) as proxy, client.channel(f"127.0.0.1:{proxy.port}") as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        for sequence in range(1, 6):
            proxy.cut_next(0)
            assert not exporter.report(claimed, sequence, sequence * 10)
        assert proxy.resets >= 5

    assert unit.get().exportation.progress_percent == 50


def test_a_call_refused_because_of_the_store_is_not_retried(unit: Unit) -> None:
    server = unit.start_server()
    (unit.directory / "export.db").unlink()
    with unit.channel() as channel:
        exporter = HandExporter(channel)
        eventually(lambda: not answered(lambda: exporter.claim(wait=0)))
    lines = [line for line in server.lines() if line["message"] == "call refused" and line["method"] == "ClaimExport"]
    assert [line["reason"] for line in lines] == ["STORE_UNAVAILABLE"]


@pytest.mark.fault("F27")
def test_a_flood_of_pings_ends_its_own_connection_and_no_other(unit: Unit) -> None:
    unit.start_server()
    answer = b""

    with unit.channel() as channel, socket.create_connection(("127.0.0.1", unit.grpc_port), 5) as flood:
        exporter = HandExporter(channel)
        waiting = exporter.stub.ClaimExport.future(
            exporter.claim_request(wait=1), metadata=exporter.metadata, timeout=5
        )
        flood.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        pause = threading.Event()

        try:
            for number in range(500):
                flood.sendall(frame(PING, 0, 0, number.to_bytes(8, "big")))
                pause.wait(0.01)
        except ConnectionError:
            pass
        assert number < 100
        try:
            while more := flood.recv(65536):
                answer += more
        except ConnectionError:
            pass

        assert not waiting.result().HasField("claimed_export")

    # The server ends the connection with GOAWAY, the error code ENHANCE_YOUR_CALM and this text: the client pings too
    # often.
    assert answer.endswith(b"\x00\x00\x00\x0btoo_many_pings")


@contextmanager
def bare_server(options: list[tuple[str, int]]) -> Iterator[int]:
    """Run a server whose only method waits for the seconds in the request, and yield its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def wait(request: bytes, _: object) -> bytes:
        await asyncio.sleep(float(request))
        return b"done"

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=options)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.fault("F27")
def test_our_own_pings_are_never_too_many(capfd: pytest.CaptureFixture[str]) -> None:
    """Keep a connection for five minutes without and five minutes with a silent call; all times are divided by 100."""
    least_name = "grpc.http2.min_ping_interval_without_data_ms"
    server = dict(GrpcListener.read(Environment({})).options())
    ours = dict(client.OPTIONS)
    least = server[least_name]
    assert ours["grpc.keepalive_time_ms"] >= 2 * least
    assert server["grpc.keepalive_time_ms"] >= least
    assert server["grpc.keepalive_permit_without_calls"] >= ours["grpc.keepalive_permit_without_calls"]
    scaled = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", least_name}

    def scale(options: dict[str, int]) -> list[tuple[str, int]]:
        return [(name, value // 100 if name in scaled else value) for name, value in options.items()]

    with bare_server(scale(server)) as port:
        seen: list[grpc.ChannelConnectivity] = []
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=scale(ours)) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Bare/Wait")
            assert call(b"0", timeout=60) == b"done"
            channel.subscribe(seen.append)
            threading.Event().wait(3)
            assert call(b"3", timeout=60) == b"done"
            # The connection was never lost, and gRPC printed no GOAWAY. Check this before the test server stops,
            # because a stop prints GOAWAY too.
            assert set(seen) <= {grpc.ChannelConnectivity.READY}
            assert "GOAWAY" not in capfd.readouterr().err


@pytest.mark.fault("F28")
def test_connections_that_grow_old_are_replaced_and_nobody_notices(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_CONNECTION_AGE_SECONDS="1", CELLEXPORT_CONNECTION_GRACE_SECONDS="5")
    unit.start_gateway()
    outcomes: Counter[int] = Counter()

    def ask_all_the_while(over: threading.Event) -> None:
        while not over.wait(0.01):
            outcomes[unit.http().status] += 1

    with meanwhile(ask_all_the_while), unit.channel() as channel:
        begun = time.monotonic()
        exporter = HandExporter(channel)
        # The claim waits for 4 seconds: longer than the maximum age of its connection (1 second), and less than the
        # grace that follows (5 seconds).
        assert exporter.claim(wait=4) is None
        assert time.monotonic() - begun > 3

    assert outcomes.keys() == {200}
    # Enough requests to meet the replacement of several connections.
    assert outcomes.total() > 20
