"""The examples in each language, run against the real programs as the README describes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import snapshots
from cellexport.v1.cell_export_pb2 import Outcome
from certificates import Authority
from chaosproxy import ChaosProxy
from unit import ROOT, TOKEN, Unit, eventually, needs

NODE = ROOT / "examples" / "node"
PYTHON = ROOT / "examples" / "python" / "watch.py"
SHELL = ROOT / "examples" / "shell"

# The first test that needs the npm packages also installs them.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(params=[pytest.param("node", marks=needs("npm")), "python"])
def caller(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Return the commands of the TypeScript or Python example that gets a status, and of the one that watches."""
    if request.param == "python":
        return {"status": [sys.executable, str(PYTHON)], "watch": [sys.executable, str(PYTHON)]}
    build = request.getfixturevalue("node")
    return {name: ["node", str(build / f"{name}.js")] for name in ("status", "watch")}


def variables(unit: Unit, token: str = TOKEN) -> dict[str, str]:
    return unit.variables(TOKEN=token, URL=f"http://127.0.0.1:{unit.http_port}", CELLEXPORT_GRPC_TARGET=target(unit))


def target(unit: Unit) -> str:
    return f"127.0.0.1:{unit.grpc_port}"


def run(unit: Unit, *command: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=variables(unit, token), capture_output=True, text=True, timeout=60)


@contextmanager
def running(unit: Unit, output: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the context is open, with its standard output and standard error in the file `output`."""
    with output.open("wb") as file, subprocess.Popen(command, env=variables(unit), stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def node_exporter(unit: Unit, node: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running(unit, output, "node", node / "exporter" / "main.js") as process:
        eventually(lambda: "waiting for exports" in output.read_text())
        yield process


def test_npm_packages_are_pinned_by_hash_and_no_registry_is_named() -> None:
    lock = json.loads((NODE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all("integrity" in package and "resolved" not in package for package in packages.values())
    wanted = json.loads((NODE / "package.json").read_text())
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert packages[f"node_modules/{name}"]["version"] == version


def test_a_caller_branches_on_reasons(shared_unit: Unit, caller: dict[str, list[str]]) -> None:
    finished = run(shared_unit, *caller["status"], "demo")
    assert (finished.returncode, finished.stdout.split()[-1]) == (0, "ready")
    unknown = run(shared_unit, *caller["status"], "nobody")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("CELL_NOT_FOUND: ")
    refused = run(shared_unit, *caller["status"], "demo", token="wrong")
    assert refused.returncode == 1
    assert refused.stderr.startswith("TOKEN_INVALID")


def test_a_caller_without_a_token_says_so_in_one_sentence(shared_unit: Unit, caller: dict[str, list[str]]) -> None:
    for command in caller.values():
        finished = run(shared_unit, *command, "demo", token="")
        assert (finished.returncode, finished.stdout) == (2, "")
        assert re.fullmatch(r"TOKEN: is not set\..+\n", finished.stderr)


NO_SERVER = "127.0.0.1:1"
ELSEWHERE = (
    r"CELLEXPORT_GRPC_TARGET: foo is another machine, and .+ "
    r"Set CELLEXPORT_GRPC_CA, or CELLEXPORT_PLAINTEXT=allow if .+\."
)
UNASKED = r"[A-Z]+: call to {target} failed \({details}\): check that the server runs there, and that TLS .+\."


def unasked(details: str, target: str = r"127\.0\.0\.1:[0-9]+") -> str:
    return UNASKED.format(target=target, details=details)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize(
    ("mistake", "status", "sentence"),
    [
        ("CELLEXPORT_GRPC_CA=/nope", 2, r"CELLEXPORT_GRPC_CA: /nope can't be read \([Nn]o such file.+\)\."),
        ("CELLEXPORT_GRPC_CA={key}", 2, r"CELLEXPORT_GRPC_CA: .+ holds no certificate in PEM\."),
        (
            "CELLEXPORT_GRPC_CA={ca} CELLEXPORT_GRPC_CLIENT_KEY={key}",
            2,
            r"CELLEXPORT_GRPC_CLIENT_.+ Set both, or none\.",
        ),
        (
            "CELLEXPORT_GRPC_CA={ca} CELLEXPORT_GRPC_CLIENT_CERT={ca} CELLEXPORT_GRPC_CLIENT_KEY={key}",
            2,
            r"CELLEXPORT_GRPC_CLIENT_KEY: .*is not the key .+\.",
        ),
        ("CELLEXPORT_GRPC_TARGET=foo", 2, ELSEWHERE),
        ("TOKEN=ü", 2, r"TOKEN: must be .*printable ASCII.+\."),
        (
            "CELLEXPORT_GRPC_CA={ca} CELLEXPORT_GRPC_CLIENT_CERT={ca} CELLEXPORT_GRPC_CLIENT_KEY=-----BEGIN",
            2,
            r"CELLEXPORT_GRPC_CLIENT_KEY: the file can't be read .+\.",
        ),
        ("TOKEN= TOKEN_FILE=/nope", 2, r"TOKEN_FILE: the file can't be read .+\."),
        (f"CELLEXPORT_GRPC_TARGET={NO_SERVER}", 1, unasked("(?i:.*connec.* ?refused.*)", NO_SERVER)),
        (
            "CELLEXPORT_GRPC_CA={ca} CELLEXPORT_GRPC_SERVER_NAME=export.example",
            1,
            unasked("(?i:.*wrong.version.number.*)"),
        ),
    ],
)
def test_a_callers_wrong_setting_is_reported_in_one_sentence(
    shared_unit: Unit, caller: dict[str, list[str]], tmp_path: Path, mistake: str, status: int, sentence: str
) -> None:
    authority = Authority(tmp_path, "authority")
    settings = mistake.format(ca=authority.file, key=authority.issue("client").key)
    finished = run(shared_unit, "env", *settings.split(" "), *caller["status"], "demo")
    assert (finished.returncode, finished.stdout) == (status, "")
    # gRPC in Python writes a line about a failed TLS handshake too, so check only the last line of standard error.
    assert re.fullmatch(sentence, last_line(finished.stderr)), finished.stderr
    assert status == 1 or finished.stderr.count("\n") == 1


@needs("npm")
@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("CELLEXPORT_UNIT_DIR=/nope", r"CELLEXPORT_UNIT_DIR: /nope is not a directory\. Make it, or name .+\."),
        ("CELLEXPORT_UNIT_DIR={unit}", r"CELLEXPORT_UNIT_DIR: no snapshots can be written in .+ \(.+\)\."),
        ("CELLEXPORT_GRPC_TARGET=foo", ELSEWHERE),
        ("CELLEXPORT_MASTER_TOKEN=", r"CELLEXPORT_EXPORTER_TOKEN or CELLEXPORT_MASTER_TOKEN: is not set\. .+\."),
        (
            "CELLEXPORT_EXPORTER_TOKEN=wrong",
            r"the server refuses the token \(TOKEN_INVALID\): set CELLEXPORT_EXPORTER_TOKEN, or .+ to one it takes\.",
        ),
    ],
)
def test_a_wrong_setting_of_the_node_exporter_is_reported_in_one_sentence(
    shared_unit: Unit, node: Path, tmp_path: Path, mistake: str, sentence: str
) -> None:
    # Put a file in place of the snapshot directory, so that no snapshots can be written.
    (tmp_path / "snapshots").touch()
    finished = run(shared_unit, "env", mistake.format(unit=tmp_path), "node", node / "exporter" / "main.js")
    assert finished.returncode == 2
    assert re.fullmatch(sentence, last_line(finished.stderr)), finished.stderr
    # All lines before the sentence are JSON log lines.
    assert all(json.loads(line)["level"] == "info" for line in finished.stderr.splitlines()[:-1])


@needs("npm")
@pytest.mark.parametrize("program", ["watch", "exporter/main"])
def test_a_node_program_logs_once_that_the_server_is_lost_and_once_that_it_is_back(
    unit: Unit, node: Path, tmp_path: Path, program: str
) -> None:
    output = tmp_path / "output"
    with running(unit, output, "node", node / f"{program}.js", "demo") as process:
        eventually(lambda: "call to" in output.read_text())
        # The program has found no server, and retries. Now there is one.
        unit.start_server()
        eventually(lambda: "server available again" in output.read_text())
        process.terminate()
        process.wait(60)
    said = output.read_text()

    assert re.search(unasked(".*ECONNREFUSED.*", target(unit)), said)
    assert said.count("call to") == said.count("available again") == 1


def test_a_caller_speaks_tls_and_presents_a_certificate(
    unit: Unit, caller: dict[str, list[str]], tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    server, client = authority.issue("server", "export.example"), authority.issue("client")
    unit.start_server(
        CELLEXPORT_GRPC_TLS_CERT=str(server.certificate),
        CELLEXPORT_GRPC_TLS_KEY=str(server.key),
        CELLEXPORT_GRPC_TLS_CLIENT_CA=str(authority.file),
    )

    assert run(unit, *caller["status"], "demo").returncode == 1
    unit.settings |= {
        "CELLEXPORT_GRPC_CA": str(authority.file),
        "CELLEXPORT_GRPC_CLIENT_CERT": str(client.certificate),
        "CELLEXPORT_GRPC_CLIENT_KEY": str(client.key),
        "CELLEXPORT_GRPC_SERVER_NAME": "export.example",
    }
    finished = run(unit, *caller["status"], "demo")

    assert (finished.returncode, finished.stdout.split()[-1]) == (0, "ready"), finished.stderr


def test_a_watch_goes_on_after_a_killed_server_and_ends_when_the_cell_is_ready(
    unit: Unit, caller: dict[str, list[str]], tmp_path: Path
) -> None:
    server = unit.start_server()
    unit.begin("one")
    output = tmp_path / "watch"

    with running(unit, output, *caller["watch"], "demo") as watch:
        eventually(lambda: "exporting 0% one" in output.read_text())
        server.kill()
        unit.start_server()
        unit.start_exporter()
        assert watch.wait(30) == 0
    seen = re.findall(r"^([0-9]+) (\w+)", output.read_text(), re.MULTILINE)
    revisions = [int(revision) for revision, _ in seen]

    assert revisions == sorted(set(revisions)), "a revision was printed twice"
    assert seen[-1][1] == "ready"
    assert "RESULT_SUCCEEDED REASON_UNSPECIFIED one" in output.read_text()


@needs("curl")
def test_the_shell_script_starts_an_export_and_waits_as_the_gateway_asks(unit: Unit, tmp_path: Path) -> None:
    unit.start_gateway()
    output = tmp_path / "export"

    with running(unit, output, SHELL / "export.sh", "demo", "one") as script:
        # No server runs yet, so the gateway answers with Retry-After, and the script waits for that many seconds.
        eventually(lambda: re.search("PR503-SV-0002.*: retrying in [0-9]+ s", output.read_text()))
        unit.start_server()
        unit.start_exporter()
        assert script.wait(30) == 0
    assert re.search(r"^started$", output.read_text(), re.MULTILINE)
    assert output.read_text().endswith('{"status":"ready"}\n')
    again = run(unit, SHELL / "export.sh", "nobody")
    assert (again.returncode, again.stdout) == (1, "")
    assert "PR404-DV-0003" in again.stderr


@needs("curl")
def test_the_shell_script_ends_with_an_error_where_it_started_nothing(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    unit.start_exporter()

    unit.begin("one")
    unit.wait_until_ready()
    again = run(unit, SHELL / "export.sh", "demo", "one")
    assert (again.returncode, again.stdout) == (1, "")
    assert "PR409-DV-0002" in again.stderr
    unit.programs[1].terminate()
    away = run(unit, "env", "TRIES=2", SHELL / "export.sh", "demo", "two")

    assert (away.returncode, away.stdout) == (1, "")
    assert away.stderr.endswith("giving up after 2 tries: no response\n")
    assert run(unit, SHELL / "export.sh", token="").returncode == 2


@needs("curl")
def test_the_shell_script_does_not_repeat_a_start_whose_answer_was_lost(unit: Unit, tmp_path: Path) -> None:
    unit.start_server()
    unit.start_gateway()
    output = tmp_path / "export"

    with ChaosProxy(unit.http_port) as proxy:
        proxy.cut_next(0)
        url = f"URL=http://127.0.0.1:{proxy.port}"
        with running(unit, output, "env", url, SHELL / "export.sh", "demo", "one") as script:
            eventually(lambda: '"exportation_name":"one"' in output.read_text())
            unit.start_exporter()
            assert script.wait(30) == 0

    assert proxy.resets == 1
    assert "no response: retrying in 1 s" in output.read_text()
    assert "409" not in output.read_text()
    assert output.read_text().endswith('{"status":"ready"}\n')


def test_the_shell_script_watches_without_a_copy_of_the_contract(unit: Unit) -> None:
    unit.start_server()
    unit.begin("one")
    unit.start_exporter()
    buf = Path(sys.executable).parent / "buf"

    watched = subprocess.run(
        [SHELL / "watch.sh", "demo"],
        env=variables(unit) | {"BUF": str(buf)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert watched.returncode == 0, watched.stderr
    assert '"state": "STATE_READY"' in watched.stdout


def test_the_shell_script_that_watches_says_that_no_server_was_reached(unit: Unit) -> None:
    buf = Path(sys.executable).parent / "buf"
    finished = run(unit, "env", f"BUF={buf}", SHELL / "watch.sh", "demo")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(
        f"can't read the contract from {target(unit)}: check that the server runs there, without TLS, .+\n",
        finished.stderr,
    )


@needs("npm")
def test_the_exporter_in_node_makes_the_snapshot_that_the_bundled_one_makes(
    unit: Unit, node: Path, tmp_path: Path
) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    (webdav / "empty").mkdir()
    for name in ("ü.txt", "100%25.txt", "C:drive", "back\\slash", "ends. ", "tab\t", "日本.txt", "large.bin"):
        (webdav / name).write_bytes(name.encode() * (200_000 if name == "large.bin" else 1))
    (webdav / os.fsdecode(b"\xff\xc3.bin")).write_bytes(b"no UTF-8")
    (webdav / "link").symlink_to("/etc/passwd")
    (webdav / "outside").symlink_to("/etc")
    os.mkfifo(webdav / "pipe")
    os.utime(webdav / "ü.txt", (0, 0))
    odata = unit.directory / "cells" / "demo" / "odata"
    odata.mkdir()
    (odata / "10_box.pjson").write_text("{}\n")
    (odata / "other").touch()
    unit.start_server()

    with node_exporter(unit, node, tmp_path / "exporter") as process:
        unit.begin("theirs")
        assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED
        # The snapshot theirs.zip exists now, so the server refuses another export of this name.
        with pytest.raises(grpc.RpcError):
            unit.begin("theirs")
        process.terminate()
        assert process.wait(60) == 0
    unit.start_exporter()
    unit.begin("ours")
    unit.wait_until_ready()
    theirs, ours = (unit.snapshots / "demo" / f"{name}.zip" for name in ("theirs", "ours"))
    verified = run(unit, sys.executable, "-m", "server.exporter", "verify", theirs)

    assert verified.returncode == 0, verified.stdout
    assert ": complete: " in verified.stdout
    assert listed(theirs) == listed(ours)
    assert theirs.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in theirs.parent.iterdir()} == {"theirs.zip", "ours.zip"}


def listed(path: Path) -> dict[str, dict[str, object]]:
    """Return the lines of a snapshot's list of entries, by name, to compare the snapshots of two exporters.

    Modification times are kept only for the cell's own files.
    """
    _, lines = snapshots.read(path)
    return {
        line["name"]: line if "mtime" in line and line["name"].startswith("20_") else line | {"mtime": None}
        for line in lines
    }


def begun(unit: Unit) -> Path | None:
    """Return the unfinished snapshot (`.part`) of export `one`, or None as long as it has no content."""
    return next((path for path in unit.snapshots.glob("demo/one.*.part") if path.stat().st_size > 0), None)


@needs("npm")
@pytest.mark.parametrize("how", ["terminated", "killed", "cancelled"])
def test_an_export_of_the_exporter_in_node_ends_with_it_and_leaves_no_zip(
    unit: Unit, node: Path, tmp_path: Path, how: str
) -> None:
    unit.add_large_file(8 * 1024)
    unit.start_server()

    with node_exporter(unit, node, tmp_path / "exporter") as process:
        unit.begin("one")
        part = eventually(lambda: begun(unit))
        match how:
            case "terminated":
                process.terminate()
                assert process.wait(60) == 0
            case "killed":
                process.send_signal(signal.SIGKILL)
            case _:
                unit.cancel()
        outcome = unit.wait_until_ready().last_outcome
    reasons = {
        "terminated": Outcome.REASON_SHUTDOWN,
        "killed": Outcome.REASON_LEASE_EXPIRED,
        "cancelled": Outcome.REASON_CANCELLED,
    }

    assert (outcome.result, outcome.reason) == (Outcome.RESULT_INTERRUPTED, reasons[how])
    assert {path.name for path in part.parent.iterdir()} == {"one.error"}


@needs("npm")
def test_an_exporter_in_node_that_was_given_up_on_publishes_nothing(unit: Unit, node: Path, tmp_path: Path) -> None:
    unit.start_server()
    output = tmp_path / "exporter"
    unit.add_large_file(8 * 1024)

    with node_exporter(unit, node, output) as process:
        unit.begin("one")
        eventually(lambda: begun(unit))
        process.send_signal(signal.SIGSTOP)
        outcome = unit.wait_until_ready().last_outcome
        process.send_signal(signal.SIGCONT)
        eventually(lambda: "export abandoned" in output.read_text())

    assert outcome.reason == Outcome.REASON_LEASE_EXPIRED
    assert not (unit.snapshots / "demo" / "one.zip").exists()


@needs("npm")
def test_the_node_exporter_goes_on_without_the_server_and_publishes_after_its_return(
    unit: Unit, node: Path, tmp_path: Path
) -> None:
    size = unit.add_large_file(256).stat().st_size
    server = unit.start_server()

    with node_exporter(unit, node, tmp_path / "exporter"):
        unit.begin("one")
        part = eventually(lambda: begun(unit))
        server.kill()
        eventually(lambda: part.stat().st_size > size)
        assert [path.suffix for path in part.parent.iterdir()] == [".part"]
        unit.start_server()
        assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED

    assert [path.suffix for path in part.parent.iterdir()] == [".zip"]
