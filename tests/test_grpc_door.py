"""The gRPC door by callers who are not polite."""

import gzip
from collections.abc import Iterator

import grpc
import pytest
from unit import TOKEN, Unit

from cellexport.v1.cell_export_pb2 import GetCellExportRequest, GetCellExportResponse

GET = "/cellexport.v1.CellExportService/GetCellExport"
GOOD = ("authorization", f"Bearer {TOKEN}")
DEMO = GetCellExportRequest(cell="demo").SerializeToString()


@pytest.fixture(scope="module")
def channel(shared_unit: Unit) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{shared_unit.grpc_port}") as channel:
        yield channel


def outcome(channel: grpc.Channel, message: bytes = DEMO, *metadata: tuple[str, str | bytes], method: str = GET) -> str:
    """The status of a call, `OK` included."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        answer = call(message, metadata=metadata, timeout=5)
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
    assert {outcome(channel, DEMO, large) for _ in range(100)} == {"RESOURCE_EXHAUSTED"}
    assert outcome(channel, DEMO, GOOD) == "OK"


@pytest.mark.parametrize(
    "cell", ["..", ".", "", "demo\n", "a/b", "a%2fb", "Demo", "-a", "_a", "demo ", "a" * 129, "a" * 4000, "é", "a\x00b"]
)
def test_cells_that_are_none(channel: grpc.Channel, cell: str) -> None:
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
def test_methods_that_are_none(channel: grpc.Channel, method: str) -> None:
    assert outcome(channel, DEMO, GOOD, method=method) == "UNIMPLEMENTED"
