"""The gRPC port under hostile input: malformed metadata, messages, methods and frames."""

import gzip
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, GetCellExportResponse
from unit import PREFACE, TOKEN, Unit, frame, request

GET = "/cellexport.v1.CellExportService/GetCellExport"
GOOD = ("authorization", f"Bearer {TOKEN}")
DEMO = GetCellExportRequest(cell="demo").SerializeToString()


@pytest.fixture(scope="module")
def channel(shared_unit: Unit) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{shared_unit.grpc_port}") as channel:
        yield channel


def outcome(channel: grpc.Channel, message: bytes = DEMO, *metadata: tuple[str, str | bytes], method: str = GET) -> str:
    """Return the gRPC status of a call (or `OK`); `TALKATIVE` if its error's message exceeds 200 characters."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        answer = call(message, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code().name if len(error.details() or "") <= 200 else "TALKATIVE"
    assert GetCellExportResponse.FromString(answer).cell_export.cell == "demo"
    return "OK"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([], "UNAUTHENTICATED"),
        ([GOOD], "OK"),
        ([("authorization", f"bearer {TOKEN}")], "OK"),
        ([GOOD, GOOD], "UNAUTHENTICATED"),
        ([GOOD, ("authorization", "Bearer wrong")], "UNAUTHENTICATED"),
        ([("authorization-bin", f"Bearer {TOKEN}".encode())], "UNAUTHENTICATED"),
        ([("x-override", f"Authorization: Bearer {TOKEN}")], "UNAUTHENTICATED"),
        ([("p-cookie", "x"), ("p-cookie-peer", "y")], "UNAUTHENTICATED"),
        ([GOOD, ("x-personium-requestkey", "a" * 128)], "OK"),
        ([GOOD, ("x-personium-requestkey", "a" * 129)], "INVALID_ARGUMENT"),
        ([GOOD, ("x-personium-requestkey", "")], "OK"),
        ([GOOD, ("x-personium-requestkey", "a"), ("x-personium-requestkey", "a")], "INVALID_ARGUMENT"),
        ([GOOD, ("x-personium-requestkey-bin", b"\x00")], "OK"),
        ([("x-personium-requestkey", "a b")], "INVALID_ARGUMENT"),
        ([("authorization", "Bearer " + "a" * 9000)], "UNAUTHENTICATED"),
    ],
)
def test_metadata(channel: grpc.Channel, metadata: list[tuple[str, str | bytes]], expected: str) -> None:
    assert outcome(channel, DEMO, *metadata) == expected


def test_metadata_above_the_limit_is_refused_every_time(channel: grpc.Channel) -> None:
    large = ("authorization", "Bearer " + "a" * 20_000)
    assert {outcome(channel, DEMO, large) for _ in range(25)} == {"RESOURCE_EXHAUSTED"}
    assert outcome(channel, DEMO, GOOD) == "OK"


@pytest.mark.parametrize(
    "cell", ["..", ".", "", "demo\n", "a/b", "a%2fb", "Demo", "-a", "_a", "demo ", "a" * 129, "a" * 4000, "é", "a\x00b"]
)
def test_invalid_names_of_cells_are_not_found(channel: grpc.Channel, cell: str) -> None:
    message = GetCellExportRequest(cell=cell).SerializeToString()
    assert outcome(channel, message, GOOD) == "NOT_FOUND"
    assert outcome(channel, message) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (DEMO + b"\xfa\x3f\x03abc", "OK"),
        (b"\x0a\x05other" + DEMO, "OK"),
        (b"", "NOT_FOUND"),
        (b"\xff\xff\xff", "INTERNAL"),
        (b"\x0a\x02\xff\xfe", "INTERNAL"),
        (b"\x0a\xff\xff\xff\xff\x0f", "INTERNAL"),
        (b"\x0b" * 10_000, "INTERNAL"),
        (b"\x0a" + b"\x80\x80\x80\x01" + b"a" * (2 * 1024 * 1024), "RESOURCE_EXHAUSTED"),
    ],
    ids=["unknown field", "twice", "empty", "varint", "utf-8", "length", "nesting", "large"],
)
def test_messages(channel: grpc.Channel, message: bytes, expected: str) -> None:
    assert outcome(channel, message, GOOD) == expected


def test_a_message_that_grows_when_it_is_unpacked_is_refused(shared_unit: Unit) -> None:
    options = (("grpc.default_compression_algorithm", 2),)
    with grpc.insecure_channel(f"127.0.0.1:{shared_unit.grpc_port}", options=options) as channel:
        assert len(gzip.compress(bytes(64 * 1024 * 1024))) < 1024 * 1024
        assert outcome(channel, b"\x0a" + bytes(64 * 1024 * 1024), GOOD) == "RESOURCE_EXHAUSTED"
    assert shared_unit.programs[0].peak_memory() < 300 * 1024 * 1024


@pytest.mark.parametrize(
    "method",
    [
        "/cellexport.v1.CellExportService/Nothing",
        "/cellexport.v1.Nothing/GetCellExport",
        "/cellexport.v1.CellExportService/../CellExportService/GetCellExport",
    ],
)
def test_unknown_methods_are_unimplemented(channel: grpc.Channel, method: str) -> None:
    assert outcome(channel, DEMO, GOOD, method=method) == "UNIMPLEMENTED"


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header encoded for HTTP/2, neither indexed nor compressed."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


@pytest.mark.parametrize(
    "name", [b"authorization", b"p-cookie", b"p-cookie-peer", b"x-personium-requestkey", b"x-other"]
)
def test_bytes_that_no_client_library_sends_are_in_no_log(unit: Unit, name: bytes) -> None:
    server = unit.start_server()
    path = b"/cellexport.v1.CellExportService/GetCellExport"
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    headers += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (name, b"Bearer CANARY-77\xe9")]
    block = b"".join(literal(key, value) for key, value in headers)
    message = bytes(5 - 1) + bytes([len(DEMO)]) + DEMO

    with socket.create_connection(("127.0.0.1", unit.grpc_port), 10) as connection:
        connection.sendall(PREFACE + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, block) + frame(0, 1, 1, message))
        connection.settimeout(2)
        answer = b""
        try:
            # Any answer is fine. Read it up to its gRPC status, or until the server closes the connection.
            while b"grpc-status" not in answer and (more := connection.recv(65536)):
                answer += more
        except TimeoutError:
            pass

    assert answer
    assert unit.get().cell == "demo"
    assert "CANARY-77" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_two_values_are_judged_as_an_http_server_joins_them(shared_unit: Unit, channel: grpc.Channel) -> None:
    for first, second in ((f"Bearer {TOKEN}", f"Bearer {TOKEN}"), ("Basic eDp5", "Basic eDp5"), ("", "Bearer x")):
        lines = [f"Authorization: {first}", f"Authorization: {second}"]
        code = shared_unit.raw(request("GET /demo/__export", *lines)).code
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET)
        with pytest.raises(grpc.RpcError) as raised:
            call(DEMO, metadata=(("authorization", first), ("authorization", second)), timeout=60)
        info = client.error_info(raised.value)
        assert info is not None
        assert info.metadata["personium_code"] == code


def test_more_connections_than_a_shell_allows_are_served(unit: Unit) -> None:
    unit.start_server("sh", "-c", 'ulimit -Sn 128 && exec "$@"', "sh")
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", unit.grpc_port), 5))
        assert unit.get().state == CellExport.STATE_READY
