"""Errors over HTTP and gRPC: the same request gets the same verdict."""

import asyncio
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from werkzeug.test import Client

from cellexport import client
from cellexport.environment import Secret
from cellexport.v1 import cell_export_pb2
from cellexport.v1.cell_export_pb2 import GetCellExportRequest, GetCellExportResponse, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from gateway import create_app
from gateway.settings import Settings
from server.auth import Judge
from server.auth.master import MasterToken
from server.auth.rights import Privilege
from server.cells import CellDirectory
from server.exports.clock import now_ms
from server.rpc.admission import Admission, Call
from server.rpc.guard import Guard
from server.rpc.in_flight import CallsInFlight
from server.rpc.methods import UnaryMethod
from tokens import ACCESS_FILE, SECRET, Issuer, expired, fields, generate, local, resident
from unit import TOKEN, UNIT_URL, Answer, Unit, needs_root

GOOD = {"authorization": f"Bearer {TOKEN}"}
INVALID_TOKEN = ', error="invalid_token"'


@dataclass(frozen=True)
class Row:
    """A request that is sent over HTTP and over gRPC, and the verdict that both must return.

    `cell` and `name` are the request's arguments; with a `name` it starts an export. `headers` are its credentials.
    `deadline` is that of the gRPC call, in seconds.
    """

    id: str
    http: int
    code: str
    message: str
    status: str
    reason: str
    headers: dict[str, str]
    cell: str = "demo"
    name: str | None = None
    challenge: str | None = None
    retry: bool = False
    deadline: float = 60
    # Changes a unit that no other row uses. Rows without a preparation share a unit.
    prepare: Callable[[Unit], object] | None = None


def exporting(unit: Unit) -> None:
    unit.begin()


def snapshot_there(unit: Unit) -> None:
    (unit.snapshots / "demo").mkdir(parents=True)
    (unit.snapshots / "demo" / "taken.zip").touch()


def damaged(unit: Unit) -> None:
    (unit.directory / "cells" / "demo" / "cell.toml").write_text("owner = 1")


def paused(unit: Unit) -> None:
    # Let the gateway connect to the server before the server is paused. Then the gateway waits for an answer, not for a
    # connection.
    assert unit.http().status == 200
    unit.programs[0].signal(signal.SIGSTOP)


def store_gone(unit: Unit) -> None:
    (unit.directory / "export.db").unlink()
    unit.programs[0].wait_for_log("store unavailable")


def killed(unit: Unit) -> None:
    unit.programs[0].kill()


INVALID = ("TOKEN_INVALID", "TOKEN_EXPIRED", "REFRESH_TOKEN", "SIGNATURE_INVALID")
ISSUER = Issuer(Path(), "ES256", keys={"one": generate("ES256"), "two": generate("ES256")})


def unauthenticated(label: str, authorization: str | None, code: str, message: str, reason: str) -> Row:
    headers = {} if authorization is None else {"authorization": authorization}
    challenge = INVALID_TOKEN if reason in INVALID else ""
    return Row(label, 401, f"PR401-AU-{code}", message, "UNAUTHENTICATED", reason, headers, challenge=challenge)


MISSING = ("0001", "Authorization required.", "CREDENTIALS_MISSING")
SCHEME = ("0003", "Invalid authentication scheme.", "SCHEME_UNKNOWN")
BASIC = ("0004", "Basic auth format error.", "BASIC_MALFORMED")
BAD_TOKEN = ("0006", "Token parse error.", "TOKEN_INVALID")
EXPIRED = ("0002", "Access token expired.", "TOKEN_EXPIRED")
REFRESH = ("0007", "Can not access with refresh token.", "REFRESH_TOKEN")
SIGNATURE = ("0008", "Token dsig error.", "SIGNATURE_INVALID")
SCOPE = (
    "PR403-AU-0007",
    "Insufficient scope is granted for the access token. [root] Privilege is required.",
    "PERMISSION_DENIED",
    "SCOPE_INSUFFICIENT",
)
LACKING = ("PR403-AU-0002", "Necessary privilege is lacking.", "PERMISSION_DENIED", "PRIVILEGE_LACKING")
NO_CELL = ("PR404-DV-0003", "Cell not found.", "NOT_FOUND", "CELL_NOT_FOUND")
BAD_KEY = (
    "PR400-EV-0002",
    "Request header is invalid [X-Personium-RequestKey].",
    "INVALID_ARGUMENT",
    "REQUEST_KEY_INVALID",
)
BAD_NAME = (
    "PR400-CM-0002",
    "Field [Name] format error. Must be [^[a-zA-Z0-9-_]{1,192}$].",
    "INVALID_ARGUMENT",
    "NAME_INVALID",
)
EXISTS = ("PR409-DV-0002", "File [taken.zip] already exists.", "ALREADY_EXISTS", "SNAPSHOT_EXISTS")
BUSY = (
    "PR409-CM-0002",
    "Because [cell export] is being executed, writing to cell can not be done.",
    "FAILED_PRECONDITION",
    "ALREADY_EXPORTING",
)
STORE = ("PR503-SV-0003", "Server error. (Lock Manager) Data lock state unknown.", "UNAVAILABLE", "STORE_UNAVAILABLE")
DAMAGED = ("PR500-SV-0002", "Datastore unknown error.", "DATA_LOSS", "DATA_DAMAGED")
AWAY = ("PR503-SV-0002", "Server connection error.", "UNAVAILABLE", "")
LATE = ("PR504-SV-0001", "Request timeout in server.", "DEADLINE_EXCEEDED", "")

ROWS = [
    unauthenticated("none", None, *MISSING),
    unauthenticated("basic", "Basic eDp5", *MISSING),
    unauthenticated("scheme", "Digest x", *SCHEME),
    unauthenticated("empty", "", *SCHEME),
    unauthenticated("basic format", "Basic eA", *BASIC),
    unauthenticated("token", "Bearer x", *BAD_TOKEN),
    unauthenticated("no token", "Bearer", *BAD_TOKEN),
    unauthenticated("account gone", f"Bearer {resident('gone')}", *MISSING),
    unauthenticated("expired", f"Bearer {resident(issued=expired())}", *EXPIRED),
    unauthenticated("refresh", f"Bearer {local('RR~', fields('3'))}", *REFRESH),
    unauthenticated("signature", f"Bearer {ISSUER.token({'kid': 'two'})}", *SIGNATURE),
    Row("role", 403, *LACKING, {"authorization": f"Bearer {resident('staff')}"}),
    Row("scope", 403, *SCOPE, {"authorization": f"Bearer {ISSUER.token(scope='x')}"}),
    Row("privilege", 403, *LACKING, GOOD | {"x-personium-unit-user": "https://unit1.example/a/#b"}),
    Row("cell unknown", 404, *NO_CELL, GOOD, cell="unknown"),
    Row("cell malformed", 404, *NO_CELL, {}, cell="-"),
    Row("request key", 400, *BAD_KEY, GOOD | {"x-personium-requestkey": "a.b"}),
    Row("name", 400, *BAD_NAME, GOOD, name="a.b"),
    Row("snapshot exists", 409, *EXISTS, GOOD, name="taken", prepare=snapshot_there),
    Row("export under way", 409, *BUSY, GOOD, name="other", prepare=exporting),
    Row("data damaged", 500, *DAMAGED, GOOD, prepare=damaged),
    Row("store gone", 503, *STORE, GOOD, prepare=store_gone, retry=True),
    Row("server gone", 503, *AWAY, GOOD, prepare=killed, retry=True),
    Row("deadline", 504, *LATE, GOOD, prepare=paused, deadline=2),
]


@contextmanager
def running_unit(directory: Path) -> Iterator[Unit]:
    """Yield a unit with server and gateway running, and every kind of token accepted."""
    with Unit(directory / "unit") as unit:
        unit.add_cell("demo")
        (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
        issuer = replace(ISSUER, directory=directory / "issuer")
        issuer.write()
        unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET, **issuer.settings)
        unit.start_gateway()
        yield unit


@pytest.fixture(scope="module")
def unchanged_unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    with running_unit(tmp_path_factory.mktemp("unchanged")) as unit:
        yield unit


@pytest.mark.process
@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_the_same_verdict_over_http_and_grpc(request: pytest.FixtureRequest, tmp_path: Path, row: Row) -> None:
    with ExitStack() as stack:
        if row.prepare is None:
            unit = request.getfixturevalue("unchanged_unit")
        else:
            unit = stack.enter_context(running_unit(tmp_path))
        channel = stack.enter_context(unit.channel())
        # Connect this channel before `prepare` pauses or damages the server. Then the call below waits for an answer,
        # not for a connection.
        call(channel, Row("first", 200, "", "", "", "", GOOD))
        if row.prepare is not None:
            row.prepare(unit)
        answer = ask(unit, row)
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, row)
    assert answer.status == row.http
    assert answer.json() == {"code": row.code, "message": {"lang": "en", "value": row.message}}
    challenge = None if row.challenge is None else f'Bearer realm="{UNIT_URL}{row.cell}/"{row.challenge}'
    assert answer.headers.get("www-authenticate") == challenge
    assert ("retry-after" in answer.headers) == row.retry

    error = raised.value
    assert error.code().name == row.status
    info = client.error_info(error)
    if not row.reason:
        assert info is None
        return

    assert info is not None
    assert (info.reason, info.domain, info.metadata["personium_code"]) == (row.reason, "cellexport", row.code)
    # The error asks callers to retry after one to two seconds. A shorter delay would flood the server, and a longer one
    # would keep callers waiting.
    assert 1 <= client.retry_seconds(error) <= 2 if row.retry else client.retry_seconds(error) == 0
    assert len(error.details() or "") <= 200


def ask(unit: Unit, row: Row) -> Answer:
    body = None if row.name is None else json.dumps({"Name": row.name}).encode()
    method, path = "GET" if body is None else "POST", f"/{row.cell}/__export"
    return unit.http(method, path, token=None, body=body, headers=row.headers)


def call(channel: grpc.Channel, row: Row) -> Message:
    stub, metadata = CellExportServiceStub(channel), tuple(row.headers.items())
    if row.name is None:
        return stub.GetCellExport(GetCellExportRequest(cell=row.cell), metadata=metadata, timeout=row.deadline)
    return stub.StartCellExport(
        StartCellExportRequest(cell=row.cell, name=row.name), metadata=metadata, timeout=row.deadline
    )


@needs_root
def test_a_full_disk_is_reported_and_the_status_is_still_returned(unit: Unit, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for number in range(30):
        unit.add_cell(f"cell{number}")
    mount = f'mount -t tmpfs -o size=96k tmpfs {small} && exec "$@"'
    unit.start_server("unshare", "-m", "sh", "-c", mount, "sh", CELLEXPORT_STORE=f"sqlite:///{small}/export.db")
    unit.start_gateway()

    answers = [unit.http("POST", f"/cell{number}/__export") for number in range(30)]
    assert answers[0].status == 202
    refused = [answer for answer in answers if answer.status != 202]
    assert {answer.code for answer in refused} == {"PR503-SV-0005"}
    assert {answer.status for answer in refused} == {503}
    for number, answer in enumerate(answers):
        expected = "exportation in progress" if answer.status == 202 else "ready"
        assert unit.status(f"cell{number}")["status"] == expected
    with pytest.raises(grpc.RpcError) as raised:
        unit.begin(cell="cell29")
    info = client.error_info(raised.value)

    assert info is not None
    assert (raised.value.code().name, info.reason) == ("RESOURCE_EXHAUSTED", "NO_SPACE")


async def fail(request: Message, call: Call) -> Message:
    """Raise an exception that is no refusal, as a bug in a method would."""
    raise RuntimeError("canary-inside-7")


async def hang(request: Message, call: Call) -> Message:
    """Never return, like a method that hangs."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def broken_server(cells: Path, rule: UnaryMethod) -> AsyncIterator[int]:
    """Run a server whose methods all follow `rule`, behind the real guard (it checks each call). Yield its port."""
    judge = Judge([MasterToken(Secret(TOKEN))], cookies=None, clock=now_ms)
    guard = Guard(Admission(judge=judge, cells=CellDirectory(cells)), CallsInFlight(), now_ms)
    service = cell_export_pb2.DESCRIPTOR.services_by_name["CellExportService"]
    rules = {method.name: rule for method in service.methods}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((guard.handlers(service, rules),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def test_an_unexpected_exception_is_an_id_that_is_found_in_the_log(
    unit: Unit, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> tuple[int, Any]:
        async with broken_server(unit.directory / "cells", UnaryMethod(Privilege.ROOT, fail)) as port:
            app = create_app(Settings.read({"CELLEXPORT_GRPC_TARGET": f"127.0.0.1:{port}"}))
            get = Client(app).get
            answer = await asyncio.to_thread(get, "/demo/__export", headers={"Authorization": f"Bearer {TOKEN}"})
            return answer.status_code, json.loads(answer.data)

    status, body = asyncio.run(main())
    assert (status, body["code"]) == (500, "PR500-SV-9999")
    text = body["message"]["value"]
    error_id = text.removeprefix("Unknown Exception [").removesuffix("]")
    assert text == f"Unknown Exception [{error_id}]"
    assert len(error_id) == 16
    [record] = [record for record in caplog.records if getattr(record, "error_id", "") == error_id]
    assert record.exc_info
    assert "canary" not in json.dumps(body)


def test_no_call_takes_longer_than_its_rule_allows(unit: Unit) -> None:
    async def main() -> grpc.aio.AioRpcError:
        async with AsyncExitStack() as stack:
            rule = UnaryMethod(Privilege.ROOT, hang, most_seconds=0.2)
            port = await stack.enter_async_context(broken_server(unit.directory / "cells", rule))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            stub = CellExportServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN))
            return raised.value

    assert asyncio.run(main()).code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_no_call_is_late_because_the_clock_is_set_while_its_time_is_reckoned(
    unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every fifth reading of the clock is an hour ahead. Other code reads the clock too, but among ten calls such a jump
    # falls into the computation of some call's time limit.
    now, jumps = time.time, itertools.cycle([3600, 0, 0, 0, 0])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))

    async def answer(_: object, __: object) -> GetCellExportResponse:
        return GetCellExportResponse()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(
                broken_server(unit.directory / "cells", UnaryMethod(Privilege.ROOT, answer, most_seconds=10))
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            get = CellExportServiceStub(channel).GetCellExport
            for _ in range(10):
                await get(GetCellExportRequest(cell="demo"), metadata=client.bearer(TOKEN), timeout=60)

    asyncio.run(main())
