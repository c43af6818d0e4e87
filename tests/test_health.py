"""Health, reflection and probes, which orchestrators and tools call without a token; and shutdowns."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from canary import steady
from cellexport.v1.cell_export_pb2 import WatchCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from cellexport.v1.exporter_pb2 import ClaimExportRequest
from redis_server import DURABLE, running
from unit import TOKEN, Answer, HandExporter, Program, Unit, accepts, eventually, needs, refused

SERVICES = ("cellexport.v1.CellExportService", "cellexport.v1.ExporterService")
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(unit: Unit) -> Iterator[grpc.Channel]:
    with unit.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def shared(shared_unit: Unit) -> Iterator[grpc.Channel]:
    eventually(lambda: ready(shared_unit))
    with shared_unit.channel() as channel:
        yield channel


def check(channel: grpc.Channel, service: str = "") -> int:
    method: grpc.UnaryUnaryMultiCallable[Message, HealthCheckResponse] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return method(HealthCheckRequest(service=service), timeout=60).status


def watch(channel: grpc.Channel, service: str = "") -> "grpc._CallIterator[HealthCheckResponse]":
    method: grpc.UnaryStreamMultiCallable[Message, HealthCheckResponse] = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return method(HealthCheckRequest(service=service), timeout=60)


def reflect(
    channel: grpc.Channel, version: str, requests: Iterable[ServerReflectionRequest], timeout: float = 10
) -> "grpc._CallIterator[ServerReflectionResponse]":
    method: grpc.StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse] = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return method(iter(requests), timeout=timeout)


def ready(unit: Unit) -> bool:
    return unit.http(path="/readyz", token=None).status == 200


# Health.


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_every_service_is_serving(shared: grpc.Channel, service: str) -> None:
    assert check(shared, service) == SERVING
    call = watch(shared, service)
    assert next(call).status == SERVING
    call.cancel()


@pytest.mark.parametrize("service", ["demo", "cellexport.v1", "x" * 1_000_000])
def test_an_unknown_service_has_no_health(shared: grpc.Channel, service: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        check(shared, service)
    assert (raised.value.code(), raised.value.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "The server has no such service.",
    )
    call = watch(shared, service)
    assert next(call).status == HealthCheckResponse.SERVICE_UNKNOWN

    call.cancel()


def test_health_follows_the_store_within_two_seconds_each_way(unit: Unit, channel: grpc.Channel) -> None:
    unit.start_server(CELLEXPORT_LEASE_SECONDS="15")
    call = watch(channel)
    while next(call).status != SERVING:
        pass
    database = unit.directory / "export.db"
    database.rename(unit.directory / "aside")
    gone = steady()
    assert next(call).status == NOT_SERVING
    assert steady() - gone < 2
    assert check(channel, SERVICES[0]) == NOT_SERVING
    (unit.directory / "aside").rename(database)
    back = steady()
    assert next(call).status == SERVING
    assert steady() - back < 2

    call.cancel()


@pytest.mark.fault("F31")
@needs("redis-server")
def test_health_reports_a_paused_redis_and_ignores_a_store_in_doubt(
    unit: Unit, channel: grpc.Channel, tmp_path: Path
) -> None:
    with running(tmp_path / "redis", *DURABLE) as redis:
        unit.start_server(CELLEXPORT_STORE=redis.url, CELLEXPORT_LEASE_SECONDS="15")
        unit.start_gateway()
        eventually(lambda: check(channel) == SERVING)
        assert not redis.is_settled()
        answer = unit.http()
        assert (answer.status, answer.code) == (503, "PR503-SV-0003")
        call = watch(channel)
        assert next(call).status == SERVING

        with redis.paused() as paused:
            assert next(call).status == NOT_SERVING
            assert steady() - paused < 2
            eventually(lambda: not ready(unit), within=2)
            # Requests to the unready gateway still get the reason: the store is unavailable.
            assert unit.http().code == "PR503-SV-0003"
        back = steady()
        assert next(call).status == SERVING
        assert steady() - back < 2
        eventually(lambda: ready(unit), within=4)
        call.cancel()


def test_a_watcher_that_reads_nothing_delays_no_other_client(unit: Unit, channel: grpc.Channel) -> None:
    server = unit.start_server(CELLEXPORT_DRAIN_SECONDS="2")
    eventually(lambda: check(channel) == SERVING)

    with socket.create_connection(("127.0.0.1", unit.grpc_port)) as silent:
        silent.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 0)))
        headers = ((":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Watch"))
        more = ((":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers"))
        silent.sendall(frame(1, 4, 1, b"".join(map(literal, headers + more))) + frame(0, 1, 1, bytes(5)))
        # The headers of the answer have arrived, so the server has opened the watch. The server can't send the first
        # message, because the client's window is 0 bytes.
        eventually(lambda: b"application/grpc" in silent.recv(65536))
        server.signal(signal.SIGTERM)
        eventually(lambda: check(channel) == NOT_SERVING, within=1)

    assert server.process.wait(60) == 0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(header: tuple[str, str]) -> bytes:
    """Return a header encoded as HPACK without compression."""
    name, value = (text.encode() for text in header)
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


# Reflection.


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_shows_the_contract_and_nothing_else(shared: grpc.Channel, version: str) -> None:
    asked = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol=SERVICES[0]),
        ServerReflectionRequest(file_by_filename="cellexport/store/v1/cell_record.proto"),
        ServerReflectionRequest(file_containing_symbol="cellexport.store.v1.CellRecord"),
        ServerReflectionRequest(),
    ]
    listed, shown, *refusals = reflect(shared, version, asked)
    assert [service.name for service in listed.list_services_response.service] == [*SERVICES, "grpc.health.v1.Health"]
    assert any(SERVICES[0].encode()[-17:] in file for file in shown.file_descriptor_response.file_descriptor_proto)
    assert [answer.error_response.error_code for answer in refusals] == [5, 5, 3]


def test_a_stream_of_reflection_is_bounded_in_number(shared: grpc.Channel) -> None:
    over = threading.Event()

    def wait() -> Iterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")
        over.wait(20)

    calls = [reflect(shared, "v1", wait()) for _ in range(64)]
    assert all(next(call).HasField("list_services_response") for call in calls)
    with pytest.raises(grpc.RpcError) as raised:
        next(reflect(shared, "v1", wait()))
    assert refused(raised) == ("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES")

    for call in calls:
        call.cancel()
    over.set()


def test_reflection_may_be_off(unit: Unit, channel: grpc.Channel) -> None:
    unit.start_server(CELLEXPORT_REFLECTION="off")
    for version in ("v1", "v1alpha"):
        with pytest.raises(grpc.RpcError) as raised:
            next(reflect(channel, version, [ServerReflectionRequest(list_services="")]))
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@needs(".venv/bin/buf")
def test_buf_needs_no_copy_of_the_contract(shared_unit: Unit) -> None:
    url = f"http://127.0.0.1:{shared_unit.grpc_port}/{SERVICES[0]}/GetCellExport"
    options = ["--protocol", "grpc", "--http2-prior-knowledge", "-H", f"Authorization: Bearer {TOKEN}"]
    said = subprocess.run([".venv/bin/buf", "curl", *options, "-d", '{"cell":"demo"}', url], capture_output=True)
    assert json.loads(said.stdout)["cellExport"]["state"] == "STATE_READY", said.stderr


# Shutdown.


@pytest.mark.fault("F08")
def test_a_server_that_shuts_down_drains_first_and_refuses_calls_then(unit: Unit, channel: grpc.Channel) -> None:
    server = unit.start_server(CELLEXPORT_DRAIN_SECONDS="1.5")
    unit.start_gateway()
    eventually(lambda: ready(unit))
    health, unknown = watch(channel), watch(channel, "nobody.Knows")
    assert next(health).status == SERVING
    assert next(unknown).status == HealthCheckResponse.SERVICE_UNKNOWN
    exporter = HandExporter(channel)
    waiting = exporter.stub.ClaimExport.future(
        ClaimExportRequest(request_id="0" * 16, wait=Duration(seconds=30)), metadata=exporter.metadata, timeout=35
    )
    watching = [
        CellExportServiceStub(channel).WatchCellExport(
            WatchCellExportRequest(cell="demo"), metadata=exporter.metadata, timeout=35
        )
        for _ in range(20)
    ]
    assert all(next(call).HasField("cell_export") for call in watching)
    begun, begun_steady = time.monotonic(), steady()
    server.signal(signal.SIGTERM)
    assert next(health).status == NOT_SERVING
    assert steady() - begun_steady < 0.5
    # The gateway may not have noticed the shutdown yet. The draining server still serves its calls.
    assert unit.http().status == 200
    # The gateway must become unready while the server still drains, for 1.5 seconds.
    eventually(lambda: not ready(unit), within=1.4)

    for call in (health, unknown):
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        assert refused(ended) == ("UNAVAILABLE", "SERVER_SHUTDOWN")
    ends: list[Callable[[], object]] = [waiting.result, *(partial(next, call) for call in watching)]
    for end in ends:
        with pytest.raises(grpc.RpcError) as refusal:
            end()
        assert refused(refusal) == ("UNAVAILABLE", "SERVER_SHUTDOWN")
    assert server.process.wait(60) == 0
    assert time.monotonic() - begun >= 1.5
    assert steady() - begun_steady < 3
    said = server.log.read_text()
    for line in ("draining: health is NOT_SERVING", "shutting down: refusing new calls", "stopped"):
        assert line in said

    assert "Traceback" not in said
    assert "destroyed" not in said


@pytest.mark.fault("F08")
def test_a_server_that_shuts_down_ends_calls_that_no_method_serves(unit: Unit, channel: grpc.Channel) -> None:
    server = unit.start_server()
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(30)
        yield b""

    # These calls reach the server but never a method, like calls that gRPC loses at the moment of a shutdown.
    path = f"/{SERVICES[0]}/GetCellExport"
    identity: Callable[[bytes], bytes] = bytes
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path, identity, identity)
    unserved = [method.future(nothing(), timeout=60) for _ in range(5)]
    eventually(lambda: check(channel) == SERVING)
    begun = steady()
    server.signal(signal.SIGTERM)

    for call in unserved:
        error = call.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert server.process.wait(60) == 0
    assert steady() - begun < 3
    over.set()


def test_a_second_signal_ends_a_server_at_once(unit: Unit) -> None:
    server = unit.start_server(CELLEXPORT_DRAIN_SECONDS="60")
    server.signal(signal.SIGTERM)
    server.wait_for_log("draining: health is NOT_SERVING")
    server.signal(signal.SIGTERM)
    assert server.process.wait(60) == -signal.SIGTERM


def test_a_server_that_is_terminated_while_it_starts_ends_cleanly(unit: Unit) -> None:
    # No Redis answers at this address, so the starting server keeps waiting for it.
    server = unit.start("server", CELLEXPORT_STORE="redis://127.0.0.1:1/0")
    server.wait_for_log("Redis unavailable at start")
    server.signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


@contextmanager
def ending_in_the_middle_of_a_request(unit: Unit) -> Iterator[tuple[Program, Program, Future[Answer]]]:
    """Yield a paused server, a gateway that shuts down while it waits for the server, and the open request."""
    server, gateway = unit.start_server(), unit.start_gateway()
    assert unit.http().status == 200
    with ThreadPoolExecutor(1) as pool:
        server.signal(signal.SIGSTOP)
        begun = pool.submit(unit.http)
        # Give the request time to reach the gateway before the gateway is asked to shut down.
        threading.Event().wait(0.3)
        gateway.signal(signal.SIGTERM)
        eventually(lambda: not accepts(unit.http_port), within=1)
        yield server, gateway, begun


@pytest.mark.fault("F08")
def test_a_gateway_that_shuts_down_answers_open_requests(unit: Unit) -> None:
    with ending_in_the_middle_of_a_request(unit) as (server, gateway, begun):
        server.signal(signal.SIGCONT)
        assert begun.result().status == 200
        assert gateway.process.wait(60) == 0


@pytest.mark.fault("F08")
def test_a_second_signal_ends_a_gateway_at_once(unit: Unit) -> None:
    with ending_in_the_middle_of_a_request(unit) as (_, gateway, begun):
        signalled = steady()
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(60) == -signal.SIGTERM
        # The gateway's worker process must end too. It drops the open request.
        assert isinstance(begun.exception(1), OSError)
        assert steady() - signalled < 1


# Probes of the gateway.


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_need_no_token_and_have_the_headers_of_every_answer(shared_unit: Unit, path: str) -> None:
    eventually(lambda: ready(shared_unit))
    answer = shared_unit.http(path=path, token=None)
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"

    head = shared_unit.http("HEAD", path, token=None)
    assert (head.status, head.body) == (200, b"")
    assert shared_unit.http("OPTIONS", path, token=None).status == 200
    refusal = shared_unit.http("POST", path)
    assert (refusal.status, refusal.code) == (405, "PR405-MC-0001")
    assert refusal.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.fault("F05", "F06")
def test_a_gateway_is_alive_whatever_the_server_does_and_ready_when_it_serves(unit: Unit) -> None:
    gateway = unit.start_gateway()
    answer = unit.http(path="/readyz", token=None)
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "PR503-SV-0002", "1")
    assert unit.http(path="/livez", token=None).status == 200
    server = unit.start_server()
    eventually(lambda: ready(unit), within=2)
    server.signal(signal.SIGSTOP)

    with ThreadPoolExecutor(40) as pool:
        # Send more readiness requests than the gateway has threads. One waits for the paused server; none may hold up
        # /livez.
        flood = [pool.submit(ready, unit) for _ in range(40)]
        begun = steady()
        assert unit.http(path="/livez", token=None).status == 200
        assert steady() - begun < 1
        assert len([future.result() for future in flood]) == 40
    eventually(lambda: not ready(unit), within=3)
    server.signal(signal.SIGCONT)
    eventually(lambda: ready(unit), within=3)
    lines = [line["message"] for line in gateway.lines()]

    assert [line for line in lines if "ready" in line] == ["ready", "not ready: no server is SERVING", "ready"]
    assert "refused" not in lines


def test_a_gateway_is_ready_though_others_have_all_the_watches_of_health(unit: Unit) -> None:
    unit.start_server()

    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{unit.grpc_port}") as channel:
            method: grpc.aio.UnaryStreamMultiCallable[Message, HealthCheckResponse] = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            watches = [method(HealthCheckRequest()) for _ in range(1000)]
            await asyncio.gather(*(watch.read() for watch in watches))
            assert await method(HealthCheckRequest()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await asyncio.to_thread(unit.start_gateway)
            await asyncio.to_thread(eventually, lambda: ready(unit), within=3)

    asyncio.run(main())
