"""Settings: an error names the variable with the bad value, and ends the program with status 2."""

import dataclasses
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from cellexport import client
from cellexport.environment import Environment, Secret, SettingError
from cellexport.program.variables import unknown
from server.exporter.settings import Settings as ExporterSettings
from server.settings import Settings as ServerSettings
from tokens import ACCESS_FILE, PEER, SECRET, Issuer, b64, cookie, expired, resident, visitor
from unit import ROOT, TOKEN, UNIT_URL, HandExporter, Unit

BAD = [
    ("server", "CELLEXPORT_UNIT_DIR", "/nowhere/at/all"),
    ("server", "CELLEXPORT_UNIT_URL", "unit1.example"),
    ("server", "CELLEXPORT_UNIT_URL", "https://unit1.example/?a=b"),
    ("server", "CELLEXPORT_UNIT_URL", 'https://unit1.example/"'),
    ("server", "CELLEXPORT_STORE", "postgres://somewhere"),
    ("server", "CELLEXPORT_STORE", "sqlite:////nowhere/at/all/export.db"),
    ("server", "CELLEXPORT_STORE", "sqlite://nonsense"),
    ("server", "CELLEXPORT_STORE", "sqlite:///"),
    ("server", "CELLEXPORT_STORE", "redis://host:port"),
    ("server", "CELLEXPORT_QUEUE_LIMIT", "many"),
    ("server", "CELLEXPORT_GRPC_LISTEN", "50051"),
    ("server", "CELLEXPORT_GRPC_LISTEN", "127.0.0.1:x"),
    ("server", "CELLEXPORT_GRPC_LISTEN", "127.0.0.1:70000"),
    ("server", "CELLEXPORT_GRPC_LISTEN", "0.0.0.0:50051"),
    ("server", "CELLEXPORT_GRPC_LISTEN", "unix:relative"),
    ("server", "CELLEXPORT_MASTER_TOKEN", "with blank"),
    ("server", "CELLEXPORT_UNIT_SECRET", "of-no-good-length"),
    ("server", "CELLEXPORT_TRUSTED_ISSUERS", "/nowhere/at/all"),
    ("server", "CELLEXPORT_CELL_URL", "https://unit1.example/"),
    ("server", "CELLEXPORT_CELL_URL", "https://{cell}.{cell}.example/"),
    ("gateway", "CELLEXPORT_CELL_URL", "{cell}.unit1.example"),
    ("gateway", "CELLEXPORT_CELL_URL", "https://{cell}.unit1.example:port/"),
    ("server", "CELLEXPORT_LEASE_SECONDS", "soon"),
    ("server", "CELLEXPORT_LEASE_SECONDS", "nan"),
    ("server", "CELLEXPORT_LEASE_SECONDS", "0"),
    ("server", "CELLEXPORT_QUEUE_SECONDS", "-1"),
    ("server", "CELLEXPORT_PLAINTEXT", "yes"),
    ("server", "CELLEXPORT_LOG_FORMAT", "xml"),
    ("server", "CELLEXPORT_GRPC_METRICS_LISTEN", "0.0.0.0:9100"),
    ("server", "CELLEXPORT_GRPC_METRICS_LISTEN", "unix:/tmp/x"),
    ("server", "CELLEXPORT_TRACES", "yes"),
    ("gateway", "CELLEXPORT_HTTP_METRICS_LISTEN", "127.0.0.1:0"),
    ("server.exporter", "CELLEXPORT_UNIT_DIR", "/nowhere/at/all"),
    ("server.exporter", "CELLEXPORT_GRPC_TARGET", "dns:///export.example:50051"),
    ("server.exporter", "CELLEXPORT_EXPORTER_TOKEN", "non-ascii-é"),
    ("gateway", "CELLEXPORT_HTTP_LISTEN", "[::]:8080"),
    ("gateway", "CELLEXPORT_HTTP_LISTEN", "unix:/tmp/x"),
    ("gateway", "CELLEXPORT_HTTP_LISTEN", "127.0.0.1:" + "8" * 5000),
    ("gateway", "CELLEXPORT_GRPC_TARGET", "10.0.0.1:50051"),
    ("gateway", "CELLEXPORT_PERSONIUM_VERSION", "1.8\n3"),
]


@pytest.mark.parametrize(("module", "name", "value"), BAD)
def test_a_bad_value_names_its_variable_and_ends_the_program(unit: Unit, module: str, name: str, value: str) -> None:
    program = unit.start(module, **{name: value})
    assert program.process.wait(60) == 2
    message = program.log.read_text()
    assert re.fullmatch(rf"cellexport-\w+: {name}: .+\n", message), message


@pytest.mark.process
@pytest.mark.parametrize("module", ["server", "server.exporter", "gateway"])
def test_every_program_says_what_it_is_and_starts_nothing(module: str) -> None:
    shown = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "until SIGTERM or SIGINT" in shown.stdout
    shown = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(rf"cellexport-\w+ {version('cellexport')}\n", shown.stdout)


def test_a_taken_port_is_one_clear_sentence(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    second = unit.start("gateway")
    assert second.process.wait(60) == 2
    assert f"CELLEXPORT_HTTP_LISTEN: 127.0.0.1:{unit.http_port} can't be listened on" in second.log.read_text()


def test_a_secret_may_come_from_a_file_but_not_from_both(unit: Unit, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    unit.start_server(CELLEXPORT_MASTER_TOKEN="", CELLEXPORT_MASTER_TOKEN_FILE=str(file))
    assert unit.get(token="from-a-file").cell == "demo"
    both = {"CELLEXPORT_MASTER_TOKEN": "a", "CELLEXPORT_MASTER_TOKEN_FILE": str(file)}
    with pytest.raises(SettingError, match="CELLEXPORT_MASTER_TOKEN: is set, and so is CELLEXPORT_MASTER_TOKEN_FILE"):
        Environment(both).secret("CELLEXPORT_MASTER_TOKEN")


@pytest.mark.parametrize("content", [None, "", "\n", "a b\n"])
def test_a_bad_file_is_named_and_its_content_is_not_shown(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingError, match="CELLEXPORT_MASTER_TOKEN_FILE: ") as error:
        Environment({"CELLEXPORT_MASTER_TOKEN_FILE": str(file)}).secret("CELLEXPORT_MASTER_TOKEN")
    assert "a b" not in str(error.value)


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret("canary")
    assert "canary" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "canary"


def test_an_open_address_may_be_allowed(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_GRPC_LISTEN=f"0.0.0.0:{unit.grpc_port}", CELLEXPORT_PLAINTEXT="allow")
    assert unit.get().cell == "demo"


def test_calls_go_over_a_unix_socket_too(unit: Unit, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/grpc.sock"
    unit.start_server(CELLEXPORT_GRPC_LISTEN=socket)
    unit.start_gateway(CELLEXPORT_GRPC_LISTEN=socket)
    assert unit.http().status == 200


def test_a_unix_socket_is_not_taken_over_from_a_server_that_lives(unit: Unit, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/grpc.sock"
    first = unit.start_server(CELLEXPORT_GRPC_LISTEN=socket)
    more = {"CELLEXPORT_GRPC_LISTEN": socket, "CELLEXPORT_STORE": f"sqlite:///{tmp_path}/other.db"}
    second = unit.start("server", **more)
    assert second.process.wait(60) == 2
    first.kill()
    unit.start_server(**more)


def test_localhost_is_a_host(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway(CELLEXPORT_HTTP_LISTEN=f"localhost:{unit.http_port}")
    assert unit.http().status == 200


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("dns:localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("unix:/a/b", True),
        ("unix:///a/b", True),
        ("dns:///a.example:1", False),
        ("dns://127.0.0.1/a.example:1", False),
        ("ipv4:10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("192.168.0.1", False),
    ],
)
def test_plaintext_goes_to_this_machine_only(target: str, local: bool) -> None:
    environment = Environment({"CELLEXPORT_GRPC_TARGET": target})
    if local:
        assert client.target(environment) == target
    else:
        with pytest.raises(SettingError, match="is another machine"):
            client.target(environment)


def test_without_a_master_token_everything_is_refused_and_the_log_says_so(unit: Unit) -> None:
    server = unit.start_server(CELLEXPORT_MASTER_TOKEN="")
    warning = "set CELLEXPORT_MASTER_TOKEN, CELLEXPORT_UNIT_SECRET, or CELLEXPORT_TRUSTED_ISSUERS"
    server.wait_for_log(f"every call will be refused: {warning}")
    unit.start_gateway()
    assert unit.http().code == "PR401-AU-0006"


def test_settings_do_not_show_what_is_secret(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    issuer = Issuer(tmp_path / "issuer", "HS256").add_key("one")
    variables = {"CELLEXPORT_UNIT_DIR": str(tmp_path), "CELLEXPORT_MASTER_TOKEN": TOKEN, **issuer.settings}
    variables |= {"CELLEXPORT_UNIT_SECRET": SECRET, "CELLEXPORT_EXPORTER_TOKEN": "canary-token"}
    key = issuer.keys["one"]
    for settings in (ServerSettings.read(variables), ExporterSettings.read(variables)):
        for shown in (repr(settings), str(dataclasses.asdict(settings))):
            for secret in (TOKEN, SECRET, "canary-token", key.decode(), b64(key)):
                assert secret not in shown


def test_secrets_are_in_no_file_no_answer_and_no_command_line(unit: Unit, tmp_path: Path) -> None:
    """Search files, logs, answers, snapshots and command lines of a run for each of its secrets, also refused ones."""
    issuer = Issuer(tmp_path / "issuer", "HS256").add_key("one")
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    exporters = issuer.token(aud=UNIT_URL, scope="export-report")
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET, **issuer.settings)
    unit.start_gateway()
    unit.start_exporter(CELLEXPORT_EXPORTER_TOKEN=exporters)

    local, visitors, jwt = resident(), visitor(), issuer.token()
    refused = ["wrong-canary-token", resident("gone"), resident(issued=expired()), issuer.token(exp=1), local[:-1]]
    wrapped, other = cookie(local), cookie(local, peer="canary-peer")

    answers = [unit.http("POST", token=local, body=b'{"Name":"canary"}')]
    answers += [unit.http(token=token) for token in (TOKEN, local, visitors, jwt, *refused)]
    for presented in (wrapped, other, wrapped[:-1]):
        headers = {"Cookie": f"p_cookie={presented}"}
        answers.append(unit.http(path=f"/demo/__export?p_cookie_peer={PEER}", token=None, headers=headers))
    answers.append(unit.http(token=None, headers={"X-Override": f"Authorization: Bearer {local[:-2]}"}))
    unit.wait_until_ready()

    lines = [Path(f"/proc/{program.process.pid}/cmdline") for program in unit.programs]
    places = {str(line): line.read_bytes() for line in lines}
    unit.programs.pop().terminate()
    with unit.channel() as channel:
        unit.begin()
        leased = HandExporter(channel).must_claim()
        HandExporter(channel).report(leased, 1, 1)

    key = issuer.keys["one"].decode()
    secrets = [TOKEN, SECRET, key, b64(key.encode()), exporters, local, visitors, jwt, *refused, wrapped, other]
    # Values of `p_cookie_peer`, the token of a lease, and the secret parts of access tokens.
    secrets += [
        PEER,
        "canary-peer",
        leased.lease.token,
        local[:-2],
        jwt.rpartition(".")[2],
        exporters.rpartition(".")[2],
    ]

    places |= {f"answer {number}": answer.body + repr(answer.headers).encode() for number, answer in enumerate(answers)}

    for program in unit.programs:
        program.terminate()
    places |= {str(path): path.read_bytes() for path in tmp_path.glob("*.log")}
    places |= {str(path): path.read_bytes() for path in unit.directory.rglob("*") if path.is_file()}
    with zipfile.ZipFile(unit.snapshots / "demo" / "canary.zip") as archive:
        places |= {f"{name} in the zip": archive.read(name) for name in archive.namelist()}

    assert {answer.status for answer in answers} == {200, 202, 401, 403}
    assert len(places) > 20
    assert not [(name, secret) for name, content in places.items() for secret in secrets if secret.encode() in content]


def test_a_setting_that_nobody_reads_is_warned_of(unit: Unit) -> None:
    server = unit.start_server(CELLEXPORT_LEASE_SECOND="1")
    warning = server.wait_for_log("unknown setting; check the spelling")
    assert warning["setting"] == "CELLEXPORT_LEASE_SECOND"
    assert len([line for line in server.lines() if line["level"] == "warning"]) == 1


def test_every_setting_is_in_the_readme() -> None:
    named = set()
    for directory in ("proto/cellexport", "server", "gateway"):
        for path in (ROOT / directory).rglob("*.py"):
            named |= set(re.findall(r"\bCELLEXPORT_[A-Z_]*[A-Z]\b", path.read_text()))
    documented = set(re.findall(r"\bCELLEXPORT_[A-Z_]*[A-Z]\b", (ROOT / "README.md").read_text()))
    assert named <= documented | {f"{name}_FILE" for name in documented}
    assert not unknown(named)
