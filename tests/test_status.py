"""The status over HTTP and gRPC, as a caller sees it."""

import re
import secrets
import socket
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest, Outcome
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, UNIT_URL, HandExporter, Unit, eventually, request

STANDARD_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "X-Personium-Version, X-Personium-RequestKey, WWW-Authenticate, Location, "
    "Retry-After, ETag, Preference-Applied",
    "x-personium-version": "1.8.3",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def error_body(code: str, message: str) -> bytes:
    return f'{{"code":"{code}","message":{{"lang":"en","value":"{message}"}}}}'.encode()


def test_a_cell_that_is_not_exported_is_ready(shared_unit: Unit) -> None:
    answer = shared_unit.http()
    assert (answer.status, answer.body) == (200, b'{"status":"ready"}')
    assert answer.headers["content-type"] == "application/json"
    status = shared_unit.get()
    assert status == CellExport(cell="demo", state=CellExport.STATE_READY, revision=status.revision)


def test_an_export_is_in_progress_from_its_acceptance_to_its_end_byte_for_byte(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()

    answer = unit.http("POST", body=b'{"Name": "CellExport_2017_01"}')
    assert (answer.status, answer.body) == (202, b"")
    assert answer.headers["location"] == f"{UNIT_URL}demo/__export"

    body = unit.http().body.decode()
    started = re.fullmatch(
        r'\{"status":"exportation in progress","started_at":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)",'
        r'"progress":"0%","exportation_name":"CellExport_2017_01"\}',
        body,
    )
    assert started, body

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        assert unit.http().body.decode() == body

        exporter.report(claimed, 1, 8199, 10_000)
        assert unit.http().body.decode() == body.replace('"0%"', '"81%"')
        exportation = unit.get().exportation
        assert (exportation.name, exportation.progress_percent) == ("CellExport_2017_01", 81)
        assert exportation.start_time.ToJsonString().startswith(started[1][:19])

        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)

    assert unit.http().body == b'{"status":"ready"}'
    outcome = unit.get().last_outcome
    assert (outcome.result, outcome.name) == (Outcome.RESULT_SUCCEEDED, "CellExport_2017_01")


def test_every_answer_has_the_standard_headers(shared_unit: Unit) -> None:
    answers = [
        shared_unit.http(),
        shared_unit.http(token=None),
        shared_unit.http(path="/other/__export"),
        shared_unit.http(path="/nothing/here"),
        shared_unit.http("DELETE"),
        shared_unit.http("OPTIONS"),
        shared_unit.http("POST", body=b"no json"),
        shared_unit.http(headers={"X-Personium-RequestKey": "with blank"}),
    ]

    assert [answer.status for answer in answers] == [200, 401, 404, 404, 405, 200, 400, 400]
    for answer in answers:
        assert STANDARD_HEADERS.items() <= answer.headers.items()
        assert re.fullmatch(r"[A-Za-z0-9_-]{4}_[A-Za-z0-9_-]{18}", answer.headers["x-personium-requestkey"])


@pytest.mark.parametrize(
    ("authorization", "code", "message", "challenge"),
    [
        (None, "PR401-AU-0001", "Authorization required.", ""),
        ("Basic eDp5", "PR401-AU-0001", "Authorization required.", ""),
        ("", "PR401-AU-0003", "Invalid authentication scheme.", ""),
        ("Digest abc", "PR401-AU-0003", "Invalid authentication scheme.", ""),
        ("Basic ***", "PR401-AU-0004", "Basic auth format error.", ""),
        ("Bearer", "PR401-AU-0006", "Token parse error.", ', error="invalid_token"'),
        ("Bearer  two-blanks", "PR401-AU-0006", "Token parse error.", ', error="invalid_token"'),
        (f"Bearer {TOKEN}x", "PR401-AU-0006", "Token parse error.", ', error="invalid_token"'),
        (f"Bearer {'x' * 4097}", "PR401-AU-0006", "Token parse error.", ', error="invalid_token"'),
        (f"Bearer {TOKEN},Bearer {TOKEN}", "PR401-AU-0006", "Token parse error.", ', error="invalid_token"'),
    ],
)
def test_nobody_else_gets_in(
    shared_unit: Unit, authorization: str | None, code: str, message: str, challenge: str
) -> None:
    answer = shared_unit.http(token=None, headers={} if authorization is None else {"Authorization": authorization})
    assert (answer.status, answer.body) == (401, error_body(code, message))
    assert answer.headers["www-authenticate"] == f'Bearer realm="{UNIT_URL}demo/"{challenge}'


def test_the_scheme_may_be_in_any_case(shared_unit: Unit) -> None:
    assert shared_unit.http(token=None, headers={"Authorization": f"bEARER {TOKEN}"}).status == 200


def test_a_caller_that_names_a_unit_user_loses_the_units_rights(shared_unit: Unit) -> None:
    answer = shared_unit.http(headers={"X-Personium-Unit-User": "https://unit1.example/unitadmin/#other"})
    assert (answer.status, answer.body) == (403, error_body("PR403-AU-0002", "Necessary privilege is lacking."))
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("cell", ["other", "..", "-demo", "demo%0a", "DEMO", "%ff", "a" * 129])
def test_a_missing_cell_is_reported_before_missing_credentials(shared_unit: Unit, cell: str) -> None:
    answer = shared_unit.http(path=f"/{cell}/__export", token=None)
    assert (answer.status, answer.body) == (404, error_body("PR404-DV-0003", "Cell not found."))


@pytest.mark.parametrize(
    "path", ["/", "/demo", "/demo/__exports", "/demo/__export//", "//demo/__export", "/a%2fb/__export"]
)
def test_other_paths_are_not_recognized(shared_unit: Unit, path: str) -> None:
    answer = shared_unit.http(path=path)
    assert (answer.status, answer.body) == (404, error_body("PR404-MC-0001", "URI is not recognized."))


def test_other_methods_are_not_allowed(shared_unit: Unit) -> None:
    answer = shared_unit.http("PUT")
    assert (answer.status, answer.body) == (405, error_body("PR405-MC-0001", "Method not allowed."))
    assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"


def test_the_request_key_is_taken_and_returned(shared_unit: Unit) -> None:
    key = secrets.token_hex(64)
    assert shared_unit.http(headers={"X-Personium-RequestKey": key}).headers["x-personium-requestkey"] == key
    assert shared_unit.http(headers={"X-Personium-RequestKey": key + "a"}).code == "PR400-EV-0002"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", "PR400-CM-0004"),
        (b"\xff", "PR400-CM-0004"),
        (b'{"Name": 1}', "PR400-CM-0002"),
        (b'{"Name": ' + b"1" * 5000 + b"}", "PR400-CM-0002"),
        (b'{"a": NaN}', "PR400-CM-0004"),
        (b'{"a": -Infinity}', "PR400-CM-0004"),
        (b"[" * 60_000, "PR400-CM-0004"),
        (b'{"Name": ""}', "PR400-CM-0002"),
        (b'{"Name": "a.b"}', "PR400-CM-0002"),
        (b'{"Name": "a\\n"}', "PR400-CM-0002"),
        (b'{"Name": "' + b"a" * 193 + b'"}', "PR400-CM-0002"),
        (b'{"Name": "\\ud800"}', "PR400-CM-0002"),
        (b" " * (64 * 1024 + 1), "PR413-CM-0001"),
    ],
)
def test_a_start_with_a_bad_body_is_refused_and_changes_nothing(shared_unit: Unit, body: bytes, code: str) -> None:
    answer = shared_unit.http("POST", body=body)
    assert (str(answer.status), answer.code) == (code[2:5], code)
    assert not shared_unit.get().HasField("update_time")


def test_an_export_under_way_is_reported_before_a_snapshot_of_that_name(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    (unit.snapshots / "demo").mkdir(parents=True)
    (unit.snapshots / "demo" / "there.zip").write_bytes(b"")

    exists = unit.http("POST", body=b'{"Name":"there"}')
    assert (exists.status, exists.body) == (409, error_body("PR409-DV-0002", "File [there.zip] already exists."))

    assert unit.http("POST").status == 202
    busy = unit.http("POST", body=b'{"Name":"there"}')
    text = "Because [cell export] is being executed, writing to cell can not be done."
    assert (busy.status, busy.body) == (409, error_body("PR409-CM-0002", text))


def test_the_default_name_is_the_cells_and_the_time(unit: Unit) -> None:
    unit.start_server()
    name = unit.begin().exportation.name
    assert re.fullmatch(r"demo_\d{8}_\d{6}", name)


def test_a_default_name_that_is_taken_is_numbered(unit: Unit) -> None:
    unit.start_server()
    directory = unit.snapshots / "demo"
    directory.mkdir(parents=True)
    now = datetime.now(UTC)
    for seconds in range(20):
        stem = f"demo_{now + timedelta(seconds=seconds):%Y%m%d_%H%M%S}"
        (directory / f"{stem}.zip").touch()
        (directory / f"{stem}_2.zip").touch()
    assert re.fullmatch(r"demo_\d{8}_\d{6}_3", unit.begin().exportation.name)


def test_of_fifty_simultaneous_starts_exactly_one_wins(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    barrier = threading.Barrier(50)
    statuses: list[int] = []

    def start() -> None:
        barrier.wait()
        statuses.append(unit.http("POST").status)

    threads = [threading.Thread(target=start) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] + [409] * 49
    unit.start_exporter()
    unit.wait_until_ready()
    assert len(list((unit.snapshots / "demo").glob("*.zip"))) == 1


def test_a_cell_is_found_when_its_access_file_appears_and_lost_when_it_goes(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    assert unit.http(path="/late/__export").status == 404

    unit.add_cell("late")
    assert unit.http(path="/late/__export").status == 200

    (unit.directory / "cells" / "late" / "cell.toml").write_text("owner = ")
    damaged = unit.http(path="/late/__export")
    assert (damaged.status, damaged.code) == (500, "PR500-SV-0002")

    (unit.directory / "cells" / "late" / "cell.toml").unlink()
    assert unit.http(path="/late/__export").status == 404


def test_a_key_given_over_grpc_comes_back(shared_unit: Unit) -> None:
    with shared_unit.channel() as channel:
        metadata = (*client.bearer(TOKEN), ("x-personium-requestkey", "my-key"))
        _, call = CellExportServiceStub(channel).GetCellExport.with_call(
            GetCellExportRequest(cell="demo"), metadata=metadata, timeout=5
        )
        assert ("x-personium-requestkey", "my-key") in [tuple(entry) for entry in call.trailing_metadata()]


def start_request(*headers: str, body: bytes = b"") -> bytes:
    return request("POST /demo/__export", f"Authorization: Bearer {TOKEN}", *headers, body=body)


def test_clients_that_send_no_body_cost_nobody_a_status(shared_unit: Unit) -> None:
    with ExitStack() as stack:
        address = ("127.0.0.1", shared_unit.http_port)
        connections = [stack.enter_context(socket.create_connection(address, 20)) for _ in range(80)]
        for connection in connections:
            connection.sendall(start_request("Content-Length: 10"))

        assert shared_unit.http().status == 200
        refused = shared_unit.http("POST", body=b"{}")
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "PR503-SV-0001", "1")

    eventually(lambda: shared_unit.http("POST", body=b"[]").status == 400)
    assert not shared_unit.get().HasField("update_time")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (start_request("Content-Length: 50"), 400),
        (start_request("Content-Length: 50", body=b'{"Name":"abc"}'), 400),
        (start_request("Transfer-Encoding: chunked", body=b"zz\r\n"), 400),
        (start_request("Transfer-Encoding: chunked", body=b'8\r\n{"Name":\r\n'), 400),
        (start_request("Transfer-Encoding: chunked", body=b"10001\r\n" + b" " * 65537 + b"\r\n0\r\n\r\n"), 413),
        (start_request("Content-Length: 99999999999"), 413),
    ],
    ids=["nothing", "cut", "bad chunk", "half", "blanks", "huge"],
)
def test_a_start_whose_body_is_broken_starts_nothing(shared_unit: Unit, request_text: bytes, status: int) -> None:
    # The gateway waits for the rest of an incomplete body until the client closes its side of the connection, so close
    # it.
    assert shared_unit.raw(request_text, end=status == 400).status == status
    assert not shared_unit.get().HasField("update_time")


def test_a_start_in_chunks_is_as_good_as_any(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    body = b'8\r\n{"Name":\r\n8\r\n"pieces"\r\n1\r\n}\r\n0\r\n\r\n'
    assert unit.raw(start_request("Transfer-Encoding: chunked", body=body)).status == 202
    assert unit.get().exportation.name == "pieces"


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        (["Content-Length: 17"], [b'{"Name"', b':"pie', b'ces"}']),
        (["Transfer-Encoding: chunked"], [b'8\r\n{"Name":\r\n', b'8\r\n"pie', b'ces"\r\n1\r\n}\r\n', b"0\r\n\r\n"]),
    ],
    ids=["length", "chunked"],
)
def test_a_body_may_come_in_pieces(unit: Unit, headers: list[str], pieces: list[bytes]) -> None:
    unit.start_server()
    unit.start_gateway()

    with socket.create_connection(("127.0.0.1", unit.http_port), 10) as connection:
        connection.sendall(start_request(*headers))
        for piece in pieces:
            # Pause, so that the gateway reads each piece of the body separately.
            threading.Event().wait(0.2)
            connection.sendall(piece)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")

    assert unit.get().exportation.name == "pieces"


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 300, "evil.example", "[", ""])
def test_nothing_depends_on_the_host_that_a_request_names(shared_unit: Unit, host: str) -> None:
    with socket.create_connection(("127.0.0.1", shared_unit.http_port), 20) as connection:
        connection.sendall(f"GET /demo/__export HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = connection.recv(65536)
    assert answer.split(b" ")[1] in (b"401", b"400")
    assert b"evil" not in answer
