"""The REST facade over raw sockets, because HTTP client libraries refuse to send malformed requests."""

import re
import socket
from pathlib import Path

import pytest

from unit import TOKEN, UNIT_URL, Answer, Unit, request

GOOD = f"Authorization: Bearer {TOKEN}"
BAD_KEY = "X-Personium-RequestKey: bad key"
DEMOTED = "X-Personium-Unit-User: https://unit1.example/admin/#me"
TOO_MUCH = "X-Override: " + ",".join(["a:b"] * 17)


def code(answer: Answer) -> str:
    return answer.code if answer.body else str(answer.status)


@pytest.mark.parametrize(
    ("line", "headers", "body", "expected"),
    [
        # Each request has its own fault and the faults of the requests below it. The answer must name its own fault,
        # because the gateway checks that first.
        ("OPTIONS /nothing", [BAD_KEY, TOO_MUCH], b"", "PR400-EV-0002"),
        ("OPTIONS /nothing", [TOO_MUCH], b"", "PR400-OD-0041"),
        ("OPTIONS /nothing", ["X-HTTP-Method-Override: PUT"], b"", "200"),
        ("POST /nothing", ["X-HTTP-Method-Override: OPTIONS"], b"", "200"),
        ("PUT /nothing", [], b"{", "PR404-MC-0001"),
        ("PUT /unknown/__export", ["Content-Length: 1"], b"{", "PR405-MC-0001"),
        ("POST /unknown/__export", ["X-HTTP-Method-Override: PUT", "Content-Length: 1"], b"{", "PR405-MC-0001"),
        ("POST /unknown/__export", ["Content-Length: 99999"], b"{", "PR413-CM-0001"),
        ("POST /unknown/__export", ["Content-Length: 1"], b"{", "PR400-CM-0004"),
        ("POST /unknown/__export", ["Content-Length: 10"], b'{"Name":1}', "PR400-CM-0002"),
        ("POST /unknown/__export", ["Content-Length: 12"], b'{"Name":"."}', "PR404-DV-0003"),
        ("POST /demo/__export", ["Content-Length: 12"], b'{"Name":"."}', "PR401-AU-0001"),
        (
            "POST /demo/__export",
            [GOOD, "X-Personium-Unit-User: x", "Content-Length: 12"],
            b'{"Name":"."}',
            "PR403-AU-0002",
        ),
        ("POST /demo/__export", [GOOD, "Content-Length: 12"], b'{"Name":"."}', "PR400-CM-0002"),
    ],
)
def test_the_first_fault_in_order_is_reported(
    shared_unit: Unit, line: str, headers: list[str], body: bytes, expected: str
) -> None:
    assert code(shared_unit.raw(request(line, *headers, body=body))) == expected
    assert not shared_unit.get().HasField("update_time")


@pytest.mark.parametrize(
    "target",
    [
        "/demo/__export",
        "/demo/__export/",
        "/%64emo/__export",
        "/demo/__expor%74",
        "/demo/__export?a=b&c",
        "/demo/__export?;&&=",
        "/demo/__export?a=%&b=%zz",
        "/demo/__export?" + "k=v&" * 1000,
        "http://evil.example/demo/__export",
    ],
)
def test_the_same_status_whatever_way_the_path_is_written(shared_unit: Unit, target: str) -> None:
    answer = shared_unit.raw(request(f"GET {target}", GOOD))
    assert (answer.status, answer.body) == (200, b'{"status":"ready"}')


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/%2e%2e/__export", "PR404-DV-0003"),
        ("/../__export", "PR404-DV-0003"),
        ("/./__export", "PR404-DV-0003"),
        ("/a%2fb/__export", "PR404-MC-0001"),
        ("/a%252fb/__export", "PR404-DV-0003"),
        ("/demo%0a/__export", "PR404-DV-0003"),
        ("/a%0d%0aSet-Cookie:x/__export", "PR404-DV-0003"),
        ("/%ff/__export", "PR404-DV-0003"),
        ("/%c0%af/__export", "PR404-DV-0003"),
        ("/%ed%a0%80/__export", "PR404-DV-0003"),
        ("/" + "a" * 129 + "/__export", "PR404-DV-0003"),
        ("/" + "a" * 4000 + "/__export", "PR404-DV-0003"),
        ("/demo;x=1/__export", "PR404-DV-0003"),
        ("/demo%20/__export", "PR404-DV-0003"),
        ("/demo.zip/__export", "PR404-DV-0003"),
        ("/Demo/__export", "PR404-DV-0003"),
        ("/__ctl/__export", "PR404-DV-0003"),
        ("/constructor/__export", "PR404-DV-0003"),
        ("//__export", "PR404-MC-0001"),
        ("//evil/demo/__export", "PR404-MC-0001"),
        ("/demo/__export//", "PR404-MC-0001"),
        ("/demo/__EXPORT", "PR404-MC-0001"),
        ("/demo/__export%00", "PR404-MC-0001"),
        ("/demo/__export.json", "PR404-MC-0001"),
        ("/demo/__exports", "PR404-MC-0001"),
        ("/livez/x", "PR404-MC-0001"),
    ],
)
def test_other_paths_and_cells_are_404_with_or_without_credentials(shared_unit: Unit, path: str, expected: str) -> None:
    for headers in ([], [GOOD]):
        answer = shared_unit.raw(request(f"GET {path}", *headers))
        assert (answer.status, code(answer)) == (404, expected)
        assert "set-cookie" not in answer.headers


def test_a_name_of_128_letters_is_a_name(unit: Unit) -> None:
    unit.add_cell("a" * 128)
    unit.start_server()
    unit.start_gateway()
    assert unit.raw(request(f"GET /{'a' * 128}/__export", GOOD)).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "FOO", "TRACE", "PROPFIND", "MERGE"])
def test_other_methods_are_405_and_echo_nothing(shared_unit: Unit, method: str) -> None:
    answer = shared_unit.raw(request(f"{method} /demo/__export", GOOD, "X-Canary: canary-7"))
    assert (answer.status, answer.code) == (405, "PR405-MC-0001")
    assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
    assert b"canary-7" not in answer.body


@pytest.mark.parametrize("headers", [[], [GOOD], [BAD_KEY], [GOOD, TOO_MUCH]])
@pytest.mark.parametrize("path", ["/demo/__export", "/unknown/__export", "/nothing"])
def test_head_is_get_without_its_body(shared_unit: Unit, path: str, headers: list[str]) -> None:
    get = shared_unit.raw(request(f"GET {path}", *headers))
    head = shared_unit.raw(request(f"HEAD {path}", *headers), method="HEAD")
    varying = {"date", "x-personium-requestkey"}
    assert head.status == get.status
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }
    assert head.body == b""


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (None, None),
        ("authorization", "authorization"),
        ("Authorization, x-personium-requestkey ,X-Override", "Authorization, x-personium-requestkey ,X-Override"),
        ("a" * 1024, "a" * 1024),
        ("a" * 1025, None),
        ("a,,b", None),
        ("a b", None),
        ("a:b", None),
        ("é", None),
    ],
)
def test_a_preflight_asks_for_nothing(shared_unit: Unit, asked: str | None, allowed: str | None) -> None:
    headers = [] if asked is None else [f"Access-Control-Request-Headers: {asked}"]
    for path in ("/demo/__export", "/nothing", "*"):
        more = ["Authorization: nonsense", "Access-Control-Request-Method: DELETE", "Origin: https://evil.example"]
        answer = shared_unit.raw(request(f"OPTIONS {path}", *headers, *more))

        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["access-control-allow-methods"] == answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
        assert answer.headers["access-control-max-age"] == "86400"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers.get("access-control-allow-headers") == allowed
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("line", "value", "status"),
    [
        ("POST /demo/__export", "GET", 200),
        ("POST /demo/__export", "HEAD", 200),
        ("POST /demo/__export", "OPTIONS", 200),
        ("POST /demo/__export", "get", 405),
        ("POST /demo/__export", "DELETE", 405),
        ("POST /demo/__export", "GET,GET", 405),
        ("GET /demo/__export", "DELETE", 200),
        ("PUT /demo/__export", "GET", 405),
    ],
)
def test_the_method_is_overridden_on_a_real_post_only(shared_unit: Unit, line: str, value: str, status: int) -> None:
    answer = shared_unit.raw(request(line, GOOD, f"X-HTTP-Method-Override: {value}", "Content-Length: 0"))
    assert answer.status == status
    assert not shared_unit.get().HasField("update_time")
    if value == "HEAD":
        assert answer.body == b""


def test_an_empty_method_override_is_none(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    assert unit.raw(request("POST /demo/__export", GOOD, "X-HTTP-Method-Override: ")).status == 202


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5"],
        ["Content-Length: 99999999999"],
        ["Transfer-Encoding: chunked"],
        ["Content-Type: application/grpc"],
        ["Content-Type: multipart/form-data; boundary=x", "Content-Length: 100"],
        ["Upgrade: h2c", "Connection: Upgrade"],
        ["Upgrade: websocket", "Connection: Upgrade"],
        ["Accept: application/xml"],
        ["Accept: image/*"],
        ["Accept: */*;q=0"],
        ["Accept: " + ",".join(["a/b"] * 5000)],
        ["Accept: é"],
        ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example"],
        ["Cookie: p_cookie=x"],
        ["Range: bytes=0-1"],
    ],
)
def test_extra_parts_of_a_get_change_nothing(shared_unit: Unit, headers: list[str]) -> None:
    answer = shared_unit.raw(request("GET /demo/__export", GOOD, *headers))
    assert (answer.status, answer.body) == (200, b'{"status":"ready"}')
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["X-Personium-RequestKey: " + "a" * 128], 200),
        (["X-Personium-RequestKey: " + "a" * 129], 400),
        (["X-Personium-RequestKey:"], 200),
        (["X-Personium-RequestKey: A-z_0"], 200),
        (["X-Personium-RequestKey: a.b"], 400),
        (["X-Personium-RequestKey: a b"], 400),
        (["X-Personium-RequestKey: \x1b[31m"], 400),
        (['X-Personium-RequestKey: a","level":"FATAL'], 400),
        (["X-Personium-RequestKey: ${jndi:ldap://x}"], 400),
        (["X-Personium-RequestKey: a", "X-Personium-RequestKey: a"], 400),
        (["X-Personium-RequestKey: a", "X-Personium-RequestKey: b"], 400),
    ],
)
def test_a_request_key_is_valid_or_refused_and_returned(shared_unit: Unit, lines: list[str], status: int) -> None:
    answer = shared_unit.raw(request("GET /demo/__export", GOOD, *lines))
    assert answer.status == status
    key = answer.headers.get("x-personium-requestkey")
    if key is None:
        assert not answer.body, "only the HTTP server may refuse without a request key, and it sends no body"
        return

    given = lines[0].partition(":")[2].strip()
    if status == 200 and given:
        assert key == given
    else:
        assert re.fullmatch(r"[A-Za-z0-9_-]{4}_[A-Za-z0-9_-]{18}", key)


def test_each_refusal_of_the_facade_is_one_log_line(unit: Unit) -> None:
    unit.start_server()
    gateway = unit.start_gateway()
    key = "X-Personium-RequestKey: trace-me"

    unit.raw(request("GET /nothing?canary=1", key))
    unit.raw(request("PUT /demo/__export", key))
    unit.raw(request("POST /demo/__export", key, "Content-Length: 99999"))
    unit.raw(request("GET /a%0ab/x", key))
    unit.raw(request("GET /demo/__export", key))

    lines = [line for line in gateway.lines() if line.get("request_key") == "trace-me"]
    assert [(line["code"], line["method"], line["path"]) for line in lines] == [
        ("PR404-MC-0001", "GET", "/nothing"),
        ("PR405-MC-0001", "PUT", "/demo/__export"),
        ("PR413-CM-0001", "POST", "/demo/__export"),
        ("PR404-MC-0001", "GET", "/a\nb/x"),
    ]

    [refused] = [line for line in unit.programs[0].lines() if line.get("request_key") == "trace-me"]
    assert refused["reason"] == "CREDENTIALS_MISSING"


def test_a_refused_key_is_in_no_log(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    unit.raw(request("GET /demo/__export", GOOD, "X-Personium-RequestKey: canary 41"))
    assert unit.status() == {"status": "ready"}
    texts = [program.log.read_text() for program in unit.programs] + [
        path.read_text() for path in (unit.directory / "log").iterdir()
    ]
    assert not any("canary 41" in text for text in texts)


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer", "PR401-AU-0006"),
        ("Bearerx", "PR401-AU-0006"),
        ("bearer\tx", "PR401-AU-0006"),
        ("Bearer a b", "PR401-AU-0006"),
        ("Bearer " + "a" * 4089, "PR401-AU-0006"),
        ("Bearer " + "a" * 9000, "PR401-AU-0006"),
        ("bEaReR " + "a" * 20_000, "PR401-AU-0006"),
        ("Basic " + "a" * 9000, "PR401-AU-0004"),
        ("Negotiate " + "a" * 9000, "PR401-AU-0003"),
        ("Digest x", "PR401-AU-0003"),
        ("", "PR401-AU-0003"),
    ],
)
def test_odd_credentials_are_judged_the_same_every_time(shared_unit: Unit, authorization: str, expected: str) -> None:
    line = f"Authorization: {authorization}"
    for _ in range(5):
        assert shared_unit.raw(request("GET /demo/__export", line)).code == expected
    # The same credentials in X-Override must get the same verdict.
    override = f"X-Override: Authorization: {authorization}"
    if len(override) < 8192:
        assert shared_unit.raw(request("GET /demo/__export", override)).code == expected


def test_two_credentials_are_none(shared_unit: Unit) -> None:
    for other in (GOOD, "Authorization: Bearer wrong"):
        answer = shared_unit.raw(request("GET /demo/__export", GOOD, other))
        assert answer.code == "PR401-AU-0006"


@pytest.mark.parametrize(
    ("query", "cookie", "expected"),
    [
        ("", "p_cookie=x", "PR401-AU-0001"),
        ("?p_cookie_peer=", "p_cookie=x", "PR401-AU-0001"),
        ("?P_COOKIE_PEER=a", "p_cookie=x", "PR401-AU-0001"),
        ("?p_cookie_peer[]=a", "p_cookie=x", "PR401-AU-0001"),
        ("?p_cookie_peer=a", "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=a", "", "PR401-AU-0009"),
        ("?p_cookie_peer=a&p_cookie_peer=b", "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=&p_cookie_peer=", "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=a", "p_cookie=x; p_cookie=y", "PR401-AU-0009"),
        ("?p_cookie_peer=" + "a" * 8000, "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=%ff%fe", "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=%00", "p_cookie=x", "PR401-AU-0009"),
        ("?p_cookie_peer=a", "p_cookie=" + "x" * 9000, "PR401-AU-0009"),
        ("?p_cookie_peer=a", "p_cookie=" + "x" * 8000, "PR401-AU-0009"),
        ("?access_token=" + TOKEN, "", "PR401-AU-0001"),
    ],
)
def test_cookies_without_the_units_secret_get_nobody_in(
    shared_unit: Unit, query: str, cookie: str, expected: str
) -> None:
    headers = [f"Cookie: {cookie}"] if cookie else []
    answer = shared_unit.raw(request(f"GET /demo/__export{query}", *headers))
    assert answer.code == expected
    assert answer.headers["www-authenticate"] == f'Bearer realm="{UNIT_URL}demo/"'
    # With an `Authorization` header, even an empty one, cookies are ignored.
    answer = shared_unit.raw(request(f"GET /demo/__export{query}", *headers, "Authorization:"))
    assert answer.code == "PR401-AU-0003"


def test_grpc_headers_over_rest_are_nobodys_credentials(shared_unit: Unit) -> None:
    headers = [f"Grpc-Metadata-authorization: Bearer {TOKEN}", "Grpc-Timeout: 1H", "grpc-encoding: gzip"]
    assert shared_unit.raw(request("GET /demo/__export", *headers)).code == "PR401-AU-0001"


@pytest.mark.parametrize("version", ["HTTP/1.2", "HTTP/9.9", "http/1.1"])
def test_other_versions_are_refused(shared_unit: Unit, version: str) -> None:
    answer = shared_unit.raw(f"GET /demo/__export {version}\r\nHost: x\r\n\r\n".encode())
    assert answer.status == 400


def test_http_1_0_is_answered_and_closed(shared_unit: Unit) -> None:
    answer = shared_unit.raw(f"GET /demo/__export HTTP/1.0\r\n{GOOD}\r\n\r\n".encode())
    assert (answer.status, answer.body) == (200, b'{"status":"ready"}')


def test_pipelined_requests_are_answered_in_order_each_with_its_key(shared_unit: Unit) -> None:
    keys = [f"key-{number}" for number in range(200)]
    text = b"".join(request("GET /demo/__export", GOOD, f"X-Personium-RequestKey: {key}") for key in keys)
    with socket.create_connection(("127.0.0.1", shared_unit.http_port), 20) as connection:
        connection.sendall(text)
        answers = b""
        while answers.count(b"\r\n\r\n") < len(keys):
            answers += connection.recv(65536)
    assert re.findall(rb"x-personium-requestkey: (\S+)", answers) == [key.encode() for key in keys]


def test_nothing_of_the_query_is_logged(shared_unit: Unit) -> None:
    shared_unit.raw(request("GET /demo/__export?p_cookie_peer=canary-peer-3", "Cookie: p_cookie=canary-cookie-4"))
    texts = [Path(program.log).read_text() for program in shared_unit.programs]
    assert not any("canary-" in text for text in texts)


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: -1"],
        ["Content-Length: 0x5"],
        ["Content-Length: 99999999999999999999"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: gzip"],
        ["X-A: b\x00c"],
        ["X A: b"],
        [": b"],
        ["X-A: b", " folded: c"],
        ["X-A: b\rc"],
        [f"X-A{number}: b" for number in range(200)],
        ["X-A: " + "b" * 500_000],
    ],
    ids=range(15),
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_framing_that_is_in_doubt_gets_one_answer_and_starts_nothing(
    shared_unit: Unit, method: str, headers: list[str]
) -> None:
    second = request("GET /demo/__export", "X-Personium-RequestKey: smuggled")

    with socket.create_connection(("127.0.0.1", shared_unit.http_port), 10) as connection:
        try:
            connection.sendall(request(f"{method} /demo/__export", *headers, body=b'{"N"}' + second))
            connection.shutdown(socket.SHUT_WR)
            answers = b""
            while more := connection.recv(65536):
                answers += more
        except OSError:
            # The gateway's HTTP server may also reset the connection instead of answering.
            answers = b""

    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", answers)
    assert all(status in (b"400", b"401", b"404", b"405", b"413", b"431", b"414") for status in statuses)
    assert b"smuggled" not in answers or len(statuses) == 2
    assert not shared_unit.get().HasField("update_time")
    assert shared_unit.status() == {"status": "ready"}


def test_length_and_chunks_at_once_are_answered_once(shared_unit: Unit) -> None:
    inner = request("GET /demo/__export", "X-Personium-RequestKey: smuggled")
    body = b"0\r\n\r\n" + inner
    outer = request("POST /demo/__export", f"Content-Length: {len(body)}", "Transfer-Encoding: chunked", body=body)

    with socket.create_connection(("127.0.0.1", shared_unit.http_port), 10) as connection:
        connection.sendall(outer)
        connection.settimeout(2)
        answers = b""
        try:
            while more := connection.recv(65536):
                answers += more
        except TimeoutError:
            pass

    assert b"smuggled" not in answers
    assert answers.count(b"HTTP/1.1 ") == 1


def test_a_malformed_request_after_good_ones_ends_the_connection(shared_unit: Unit) -> None:
    good = request("GET /demo/__export", GOOD)
    with socket.create_connection(("127.0.0.1", shared_unit.http_port), 10) as connection:
        connection.sendall(good + good + b"nonsense\r\n\r\n" + good)
        answers = b""
        while more := connection.recv(65536):
            answers += more
    assert re.findall(rb"HTTP/1\.1 (\d{3})", answers) == [b"200", b"200", b"400"]
