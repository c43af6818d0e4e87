"""TLS of the REST facade and the gRPC port: clients that are accepted or refused, and certificates that change."""

import http.client
import os
import re
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from canary import steady
from cellexport import client
from cellexport.environment import Environment, SettingError
from cellexport.pem import PemFile, PemFiles, PemReloader
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from certificates import Authority, Identity, common_name
from gateway.settings import Settings as GatewaySettings
from server.exporter.settings import Settings as ExporterSettings
from server.settings import Settings as ServerSettings
from unit import CUT_OFF, TOKEN, HandExporter, Program, Unit, accepts, answered, eventually, free_port, meanwhile


@dataclass
class Pki:
    """Certificates for servers and clients: all by the authority `ours`, but `foreign` by one that nobody trusts."""

    ours: Authority
    server: Identity
    caller: Identity
    expired: Identity
    foreign: Identity
    elsewhere: Identity
    other: Identity

    def tls(self, identity: Identity | None, server_name: str = "") -> client.Tls:
        if identity is None:
            return client.Tls(self.ours.file, server_name=server_name)
        return client.Tls(self.ours.file, identity.certificate, identity.key, server_name)


def make_pki(directory: Path) -> Pki:
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    return Pki(
        ours,
        server=ours.issue("server"),
        caller=ours.issue("client"),
        expired=ours.issue("expired", days=-1),
        foreign=theirs.issue("foreign"),
        elsewhere=ours.issue("elsewhere", "export.example"),
        other=ours.issue("other"),
    )


def settings(pki: Pki, *, mutual: bool = True) -> dict[str, str]:
    """Return the settings that turn on TLS for HTTP and gRPC."""
    server, mine = pki.server, pki.caller
    found = {
        f"CELLEXPORT_{protocol}_TLS_{part}": str(path)
        for protocol in ("GRPC", "HTTP")
        for part, path in (("CERT", server.certificate), ("KEY", server.key), ("CLIENT_CA", pki.ours.file))
        if mutual or part != "CLIENT_CA"
    }
    found["CELLEXPORT_GRPC_CA"] = str(pki.ours.file)
    if mutual:
        found |= {"CELLEXPORT_GRPC_CLIENT_CERT": str(mine.certificate), "CELLEXPORT_GRPC_CLIENT_KEY": str(mine.key)}
    return found


def over_tls(unit: Unit, pki: Pki, *, mutual: bool = True) -> Unit:
    unit.settings |= settings(pki, mutual=mutual)
    identity = pki.caller if mutual else None
    unit.grpc_tls, unit.http_tls = pki.tls(identity), pki.ours.context(identity)
    return unit


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    (tmp_path / "pki").mkdir()
    return make_pki(tmp_path / "pki")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Unit, Pki]]:
    """Yield a unit whose server and gateway require mutual TLS for HTTP and gRPC, and the certificates."""
    pki = make_pki(tmp_path_factory.mktemp("pki"))
    with Unit(tmp_path_factory.mktemp("tls") / "unit") as unit:
        unit.add_cell("demo", {"hello.txt": b"hello"})
        over_tls(unit, pki).start_server()
        unit.start_gateway()
        assert unit.http().status == 200
        yield unit, pki


@contextmanager
def nothing_but_a_line(*programs: Program) -> Iterator[None]:
    """Assert that each program logs at most one line while the context is open, and no stack trace."""
    before = [len(program.log.read_bytes()) for program in programs]
    yield
    for program, length in zip(programs, before, strict=True):
        new = program.log.read_bytes()[length:].decode()
        assert "Traceback" not in new
        assert new.count("\n") <= 1, new


def ask(unit: Unit, tls: client.Tls | None) -> str:
    """Return the gRPC status of a GetCellExport call with these TLS files, `OK` on success."""
    with client.channel(f"127.0.0.1:{unit.grpc_port}", tls) as channel:
        try:
            request = GetCellExportRequest(cell="demo")
            CellExportServiceStub(channel).GetCellExport(request, metadata=client.bearer(TOKEN), timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def test_a_whole_export_over_tls_on_both_hops(unit: Unit, pki: Pki) -> None:
    over_tls(unit, pki, mutual=False)
    # The server's certificate is for export.example, not for its address, so clients need that name in a setting.
    inside = {"CELLEXPORT_GRPC_SERVER_NAME": "export.example"}
    chain, key = str(pki.elsewhere.certificate), str(pki.elsewhere.key)
    unit.start_server(CELLEXPORT_GRPC_TLS_CERT=chain, CELLEXPORT_GRPC_TLS_KEY=key)
    unit.start_gateway(**inside)
    unit.start_exporter(**inside)

    assert unit.http("POST", body=b'{"Name":"over-tls"}').status == 202
    eventually(lambda: unit.status() == {"status": "ready"})
    assert (unit.snapshots / "demo" / "over-tls.zip").is_file()

    assert ask(unit, pki.tls(None, "export.example")) == "OK"

    # A client refuses the server if the name in its certificate is not the expected one, or if it trusts another
    # authority.
    assert ask(unit, pki.tls(None)) == "UNAVAILABLE"
    assert ask(unit, client.Tls(unit.directory.parent / "pki" / "theirs.pem", None, None, "export.example")) != "OK"


def test_a_whole_export_over_mutual_tls_on_all_interfaces(unit: Unit, pki: Pki) -> None:
    over_tls(unit, pki)
    listen = {"CELLEXPORT_GRPC_LISTEN": f"0.0.0.0:{unit.grpc_port}"}
    target = {"CELLEXPORT_GRPC_TARGET": f"127.0.0.1:{unit.grpc_port}"}
    server = unit.start_server(**listen)
    server.wait_for_log("listening on every address of this machine")
    gateway = unit.start_gateway(CELLEXPORT_HTTP_LISTEN=f"0.0.0.0:{unit.http_port}", **target)
    gateway.wait_for_log("listening on every address of this machine")
    unit.start_exporter(**target)

    unit.begin("mutual")

    assert unit.wait_until_ready().state == CellExport.STATE_READY
    assert unit.http().status == 200
    assert (unit.snapshots / "demo" / "mutual.zip").is_file()


@pytest.mark.parametrize("who", [None, "expired", "foreign"])
def test_a_client_that_may_not_connect_is_refused_and_the_next_is_served(
    shared: tuple[Unit, Pki], who: str | None
) -> None:
    unit, pki = shared
    identity = getattr(pki, who) if who else None

    with nothing_but_a_line(*unit.programs):
        begun = steady()
        # Make the handshake without gRPC, which would retry: each retry is another connection, for which the server may
        # log a line.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(unit.grpc_port, pki.ours.context(identity), "h2")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            first_byte(unit.http_port, pki.ours.context(identity))
        assert steady() - begun < 1

        assert unit.get().cell == "demo"
        assert unit.http().status == 200
    assert ask(unit, pki.tls(identity)) == "UNAVAILABLE"


def handshake(port: int, context: ssl.SSLContext, protocol: str) -> str:
    """Make a TLS handshake (for h2, also wait for the server's first byte), and return the name in its certificate."""
    context.set_alpn_protocols([protocol])
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        # In TLS 1.3 the handshake ends before the server has checked the client's certificate. A byte shows that the
        # server accepts it.
        if protocol == "h2" and not connection.recv(1):
            raise ConnectionError
        return common_name(connection.getpeercert())


def first_byte(port: int, context: ssl.SSLContext) -> bytes:
    """Send a GET over TLS, and return the first byte of the response."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"GET /demo/__export HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(1)


def test_clients_with_another_protocol_are_refused_at_once(shared: tuple[Unit, Pki]) -> None:
    unit, pki = shared
    context = pki.ours.context(pki.caller)
    for port in (unit.grpc_port, unit.http_port):
        for spoken in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 100):
            with nothing_but_a_line(*unit.programs):
                begun = steady()
                assert not answer_to(port, spoken).startswith(b"HTTP")
                assert steady() - begun < 1

        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1

        with nothing_but_a_line(*unit.programs), pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, old, "h2")
        assert handshake(port, context, "http/1.1" if port == unit.http_port else "h2") == "server"
    assert ask(unit, None) == "UNAVAILABLE"


def answer_to(port: int, spoken: bytes) -> bytes:
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        try:
            connection.sendall(spoken)
            while more := connection.recv(4096):
                answer += more
        except ConnectionError:
            pass
    return answer


def test_tls_to_a_plaintext_port_ends_at_once(shared_unit: Unit, pki: Pki) -> None:
    for port in (shared_unit.grpc_port, shared_unit.http_port):
        with nothing_but_a_line(*shared_unit.programs):
            begun = steady()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(port, pki.ours.context(), "h2")
            assert steady() - begun < 1

    begun = steady()
    assert ask(shared_unit, pki.tls(pki.caller)) == "UNAVAILABLE"
    assert steady() - begun < 1
    assert shared_unit.http().status == 200


def test_a_renewed_certificate_is_shown_without_a_restart_and_a_bad_one_is_not(unit: Unit, pki: Pki) -> None:
    server = over_tls(unit, pki).start_server()
    context = pki.ours.context(pki.caller)
    assert handshake(unit.grpc_port, context, "h2") == "server"

    with unit.channel() as channel:
        stub, asked = CellExportServiceStub(channel), GetCellExportRequest(cell="demo")
        stub.GetCellExport(asked, metadata=client.bearer(TOKEN), timeout=60)

        pki.server.certificate.write_bytes(pki.other.certificate.read_bytes())
        # The new certificate has replaced the old one, but its key has not: the server keeps the old pair, and logs
        # that once.
        for _ in range(3):
            assert handshake(unit.grpc_port, context, "h2") == "server"

        warnings = [line for line in server.lines() if line["level"] == "warning"]
        assert [line["message"] for line in warnings] == ["new TLS files are invalid; keeping the previous ones"]
        assert "CELLEXPORT_GRPC_TLS_KEY" in warnings[0]["why"]

        pki.server.replace(pki.other)
        assert handshake(unit.grpc_port, context, "h2") == "other"
        # The connection that was opened with the old certificate must still work.
        stub.GetCellExport(asked, metadata=client.bearer(TOKEN), timeout=60)
    assert "PRIVATE" not in server.log.read_text()


def test_the_gateway_shows_a_renewed_certificate_and_no_request_fails_meanwhile(unit: Unit, pki: Pki) -> None:
    over_tls(unit, pki).start_server()
    metrics = free_port()
    gateway = unit.start_gateway(CELLEXPORT_HTTP_METRICS_LISTEN=f"127.0.0.1:{metrics}")
    context = pki.ours.context(pki.caller)
    outcomes: Counter[str] = Counter()

    def ask_all_the_while(over: threading.Event) -> None:
        while not over.wait(0.02):
            outcomes[status(unit)] += 1

    with meanwhile(ask_all_the_while):
        assert handshake(unit.http_port, context, "http/1.1") == "server"
        pki.server.key.write_text("half a k")
        gateway.wait_for_log("new TLS files are invalid; keeping the previous ones")
        assert handshake(unit.http_port, context, "http/1.1") == "server"
        pki.server.replace(pki.other)
        eventually(lambda: {shown(unit.http_port, context) for _ in range(9)} == {"other"})
        eventually(lambda: outcomes.total() > 20)

    assert outcomes.keys() == {"200"}
    assert gateway.process.poll() is None
    # The gateway's new worker must have taken over the metrics port, although the old worker still served metrics on it
    # when the new one started.
    eventually(lambda: accepts(metrics))
    assert "metrics unavailable" not in gateway.log.read_text()
    assert "PRIVATE" not in gateway.log.read_text()


def test_a_worker_that_starts_while_tls_files_are_invalid_still_serves(unit: Unit, pki: Pki) -> None:
    over_tls(unit, pki).start_server()
    gateway = unit.start_gateway()
    assert status(unit) == "200"

    good = {identity.certificate: identity.certificate.read_bytes() for identity in (pki.server, pki.caller)}
    for file in good:
        file.write_text("half a c")
    unit.http_tls = pki.ours.context(pki.other)
    gateway.wait_for_log("new TLS files are invalid; keeping the previous ones")

    worker = next(child for child in children(gateway) if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(worker, signal.SIGKILL)

    # The gateway's new worker serves HTTP with the old certificate. It answers 503, because it has no channel to the
    # server, and can't open one with the invalid files.
    assert eventually(lambda: status(unit) == "503")
    assert unit.http(path="/livez").status == 200
    assert unit.http(path="/readyz").status == 503

    for file, content in good.items():
        file.write_bytes(content)
    assert eventually(lambda: status(unit) == "200")
    assert gateway.process.poll() is None


def children(program: Program) -> list[int]:
    pid = program.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def shown(port: int, context: ssl.SSLContext) -> str:
    """Return the name in the gateway's certificate; empty if an exiting worker has closed the connection."""
    try:
        return handshake(port, context, "http/1.1")
    except (ssl.SSLError, ConnectionError):
        return ""


def status(unit: Unit) -> str:
    """Return the HTTP status of a GET, or an error. Like HTTP clients, retry once if the connection closes early."""
    for _ in range(2):
        try:
            return str(unit.http().status)
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected) as error:
            failure = repr(error)
    return failure


def test_a_client_presents_its_renewed_certificate_and_calls_under_way_go_on(unit: Unit, pki: Pki) -> None:
    """Replace the certificate of an exporter whose claim waits: by one that the server refuses, then by a valid one."""
    over_tls(unit, pki).start_server()
    with unit.channel() as channel:
        exporter = HandExporter(channel)
        waiting = exporter.stub.ClaimExport.future(
            exporter.claim_request(wait=20), metadata=exporter.metadata, timeout=25
        )
        # The client must not use the invalid key file, even for new connections.
        pki.caller.key.write_text("half a k")
        threading.Event().wait(1.1)
        assert exporter.claim(wait=0) is None
        pki.caller.replace(pki.foreign)

        eventually(lambda: not answered(lambda: exporter.claim(wait=0)))
        pki.caller.replace(pki.other)
        eventually(lambda: answered(lambda: exporter.claim(wait=0)))
        assert not waiting.done()
        unit.grpc_tls = pki.tls(pki.other)
        unit.begin("waited-for")
        assert waiting.result().claimed_export.name == "waited-for"


def test_unix_sockets_for_http_and_grpc(unit: Unit, tmp_path: Path) -> None:
    inner, outer = tmp_path / "grpc.sock", tmp_path / "http.sock"
    unit.settings |= {"CELLEXPORT_GRPC_LISTEN": f"unix:{inner}", "CELLEXPORT_HTTP_LISTEN": f"unix:{outer}"}
    unit.start_server()
    for _ in range(2):
        gateway = unit.start("gateway")
        assert eventually(lambda: get_over(outer) or None) == b'{"status":"ready"}'
        # The socket files allow everybody to connect: the permissions of their directory decide who may.
        assert {path.stat().st_mode & 0o777 for path in (inner, outer)} == {0o666}

        second = unit.start("gateway")
        assert second.process.wait(60) == 2
        assert "CELLEXPORT_HTTP_LISTEN: " in second.log.read_text()

        gateway.kill()
        # The worker of the killed gateway exits too. The socket file that is left must not prevent the gateway's next
        # start.
        eventually(lambda: not get_over(outer))


def get_over(path: Path) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            head = (
                f"GET /demo/__export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.read()
    except CUT_OFF:
        return b""


READ: dict[str, Callable[[Mapping[str, str]], object]] = {
    "server": ServerSettings.read,
    "gateway": GatewaySettings.read,
    "server.exporter": ExporterSettings.read,
}
PAIR = {"GRPC_TLS_CERT": "server.crt", "GRPC_TLS_KEY": "server.key"}
BAD = [
    ("server", "GRPC_TLS_CERT", {"GRPC_TLS_CERT": "nowhere", "GRPC_TLS_KEY": "server.key"}),
    ("server", "GRPC_TLS_CERT", {"GRPC_TLS_CERT": "server.key", "GRPC_TLS_KEY": "server.key"}),
    ("server", "GRPC_TLS_KEY", {"GRPC_TLS_CERT": "server.crt"}),
    ("server", "GRPC_TLS_KEY", {"GRPC_TLS_CERT": "server.crt", "GRPC_TLS_KEY": "client.key"}),
    ("server", "GRPC_TLS_KEY", {"GRPC_TLS_CERT": "server.crt", "GRPC_TLS_KEY": "server.crt"}),
    ("server", "GRPC_TLS_CLIENT_CA", {"GRPC_TLS_CLIENT_CA": "ours.pem"}),
    (
        "server",
        "GRPC_TLS_CERT",
        {"GRPC_LISTEN": "unix:{}/s", "GRPC_TLS_CERT": "server.crt", "GRPC_TLS_KEY": "server.key"},
    ),
    ("server", "GRPC_LISTEN", {"GRPC_LISTEN": "unix:{}/open/s"}),
    ("server", "GRPC_LISTEN", {"GRPC_LISTEN": "unix:{}/nowhere/s"}),
    ("server", "CONNECTION_AGE_SECONDS", {"CONNECTION_AGE_SECONDS": "0"}),
    ("server", "CONNECTION_GRACE_SECONDS", {"CONNECTION_GRACE_SECONDS": "long"}),
    ("gateway", "HTTP_TLS_CERT", {"HTTP_TLS_KEY": "server.key"}),
    ("gateway", "HTTP_LISTEN", {"HTTP_LISTEN": "unix:{}/open/s"}),
    ("gateway", "GRPC_CA", {"GRPC_CA": "server.key"}),
    ("gateway", "GRPC_CA", {"GRPC_CA": "ours.pem", "GRPC_TARGET": "unix:{}/s"}),
    ("gateway", "GRPC_TARGET", {"GRPC_TARGET": "unix:{}/open/s"}),
    ("gateway", "GRPC_TARGET", {"GRPC_TARGET": "export.example:50051?://127.0.0.1"}),
    ("gateway", "GRPC_TARGET", {"GRPC_TARGET": "dns://export.example/localhost:50051"}),
    ("gateway", "GRPC_TARGET", {"GRPC_TARGET": "xds:///localhost:50051"}),
    ("gateway", "GRPC_SERVER_NAME", {"GRPC_SERVER_NAME": "a.example"}),
    ("gateway", "GRPC_SERVER_NAME", {"GRPC_CA": "ours.pem", "GRPC_TARGET": "ipv4:127.0.0.1:1,127.0.0.1:2"}),
    ("server.exporter", "GRPC_CLIENT_CERT", {"GRPC_CLIENT_CERT": "client.crt"}),
    ("server.exporter", "GRPC_CLIENT_KEY", {"GRPC_CA": "ours.pem", "GRPC_CLIENT_CERT": "client.crt"}),
]


@pytest.mark.parametrize(("module", "name", "chosen"), BAD)
def test_bad_files_and_combinations_name_their_variable(
    shared: tuple[Unit, Pki], tmp_path: Path, module: str, name: str, chosen: dict[str, str]
) -> None:
    _, pki = shared
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    variables = {"CELLEXPORT_UNIT_DIR": str(tmp_path), "CELLEXPORT_MASTER_TOKEN": TOKEN}
    (tmp_path / "cells").mkdir()
    for short, value in chosen.items():
        is_file = value.endswith((".crt", ".key", ".pem", "nowhere")) and "unix" not in value
        path = str(pki.ours.file.parent / value) if is_file else value.format(tmp_path)
        variables[f"CELLEXPORT_{short}"] = path

    with pytest.raises(SettingError, match=rf"^CELLEXPORT_{name}: .+\.$") as raised:
        READ[module](variables)
    assert "PRIVATE" not in str(raised.value)


def test_why_a_server_is_not_reached_is_in_the_gateways_log(unit: Unit, pki: Pki) -> None:
    over_tls(unit, pki).start_server()
    gateway = unit.start_gateway(CELLEXPORT_GRPC_SERVER_NAME="somebody.else")
    assert status(unit) == "503"
    assert "Hostname Verification" in gateway.wait_for_log("call failed")["details"]


def test_tls_is_enough_for_another_machine(pki: Pki) -> None:
    remote = {"CELLEXPORT_GRPC_TARGET": "dns:///export.example:50051"}
    with pytest.raises(SettingError, match="Set CELLEXPORT_GRPC_CA, or"):
        client.target(Environment(remote))
    over = Environment(remote | {"CELLEXPORT_GRPC_CA": str(pki.ours.file)})
    assert client.target(over) == remote["CELLEXPORT_GRPC_TARGET"]
    assert client.tls(over) == client.Tls(pki.ours.file)


def test_the_repr_of_tls_files_hides_the_key(pki: Pki) -> None:
    files = PemFiles(PemFile("A", pki.server.certificate), PemFile("B", pki.server.key))
    assert re.search("PRIVATE|b'-", repr(PemReloader(files).latest).replace(repr(files.load().chain), "")) is None


def test_a_key_that_is_given_in_the_place_of_its_path_is_not_shown(unit: Unit, pki: Pki) -> None:
    settings = unit.settings | {"CELLEXPORT_GRPC_TLS_CERT": str(pki.server.certificate)}
    server = unit.start("server", **settings, CELLEXPORT_GRPC_TLS_KEY=pki.server.key.read_text())
    assert server.process.wait(60) == 2
    text = server.log.read_text()
    assert "CELLEXPORT_GRPC_TLS_KEY: the file can't be read (" in text
    assert "PRIVATE KEY" not in text
