"""`make run`, as a new user runs it: start it, paste the commands that it prints, stop it."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from canary import steady
from unit import ROOT, Unit, eventually, free_port


@contextmanager
def demo(directory: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run examples/demo/run.py, as `make run` does, in a directory. Yield the process and the file with its output."""
    (directory / "proto").symlink_to(ROOT / "proto") if not (directory / "proto").exists() else None
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CELLEXPORT_")}
    output = directory / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/demo/run.py")],
            cwd=directory,
            env=inherited | variables,
            stdout=file,
            stderr=file,
        )
    try:
        yield process, output
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def command(output: Path, label: str) -> str:
    """Wait until `make run` has printed its commands, and return the command with this label."""

    def printed() -> str | None:
        match = re.search(rf"^  {label} +((?:.*\\\n)*.*)$", output.read_text(), re.MULTILINE)
        return match[1] if match and "Ctrl-C stops everything" in output.read_text() else None

    return eventually(printed, within=60)


def paste(text: str) -> str:
    return subprocess.run(text, shell=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S602


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_stranger_has_it_running_with_one_command(tmp_path: Path) -> None:
    ports = {
        "CELLEXPORT_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
        "CELLEXPORT_GRPC_LISTEN": f"127.0.0.1:{free_port()}",
    }
    with demo(tmp_path, **ports) as (process, output):
        labels = ("start an export", "read its status", "the same over gRPC", "as an account", "for the examples")
        start, ask, grpc, account, export = (command(output, label) for label in labels)
        eventually(lambda: '{"status":"ready"}' in paste(ask))

        assert '{"status":"ready"}' in paste(paste(f"{account} 2>&1 >/dev/null"))
        assert paste(f"{export}; {sys.executable} {ROOT}/examples/python/watch.py").endswith(" ready\n")
        assert "PR404-DV-0003" in paste(f"{export}; {ROOT}/examples/shell/export.sh nobody 2>&1")

        assert "202 Accepted" in paste(start)
        assert '"status":"exportation in progress"' in paste(ask)
        assert '"state": "STATE_EXPORTING"' in paste(grpc)
        eventually(lambda: '{"status":"ready"}' in paste(ask), within=180)
        assert '"result": "RESULT_SUCCEEDED"' in paste(grpc)

        token = tmp_path / "var" / "unit" / "master_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert re.search(rf"^Token +{token.read_text().strip()}$", output.read_text(), re.MULTILINE)
        assert re.search(r"^[0-9:]+ exporter +\| info +export ended", output.read_text(), re.MULTILINE)

        snapshots = list((tmp_path / "var" / "unit" / "snapshots" / "demo").iterdir())
        assert [path.suffix for path in snapshots] == [".zip"]

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0

    begun = steady()
    with demo(tmp_path, **ports) as (_, output):
        ask = command(output, "read its status")
        eventually(lambda: '{"status":"ready"}' in paste(ask))
        assert steady() - begun < 10


def test_a_unit_of_the_users_own_is_used_as_it_is(unit: Unit, tmp_path: Path) -> None:
    variables = unit.variables(CELLEXPORT_MASTER_TOKEN="my-own")
    mine = {name: value for name, value in variables.items() if name.startswith("CELLEXPORT_")}
    with demo(tmp_path, **mine) as (_, output):
        ask = command(output, "read its status")
        assert "$CELLEXPORT_MASTER_TOKEN" in ask
        assert "my-own" not in output.read_text()
        eventually(lambda: '{"status":"ready"}' in paste("CELLEXPORT_MASTER_TOKEN=my-own; " + ask))
    assert [path.name for path in (unit.directory / "cells").iterdir()] == ["demo"]
    assert not (tmp_path / "var").exists()


def test_when_one_program_dies_all_end_and_it_is_said_which(unit: Unit, tmp_path: Path) -> None:
    mine = {name: value for name, value in unit.variables().items() if name.startswith("CELLEXPORT_")}
    with demo(tmp_path, **mine) as (process, output):
        eventually(lambda: "waiting for exports" in output.read_text())
        match = re.search(r"exporter started \(pid=(\d+)\)", output.read_text())
        assert match
        os.kill(int(match[1]), signal.SIGKILL)
        assert process.wait(60) != 0
        assert "exporter stopped (rc=-9)" in output.read_text()


def test_a_setting_that_one_program_refuses_ends_all_at_once(unit: Unit, tmp_path: Path) -> None:
    mine = {name: value for name, value in unit.variables().items() if name.startswith("CELLEXPORT_")}
    with demo(tmp_path, **mine, CELLEXPORT_X_OVERRIDE="nah") as (process, output):
        assert process.wait(60) != 0
        assert "CELLEXPORT_X_OVERRIDE: must be one of on, off." in output.read_text()
        assert "SIGKILL" not in output.read_text()


def test_a_taken_port_is_one_clear_sentence_that_says_what_to_do(unit: Unit, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", unit.http_port))
        taken.listen()
        mine = {name: value for name, value in unit.variables().items() if name.startswith("CELLEXPORT_")}
        with demo(tmp_path, **mine) as (process, output):
            assert process.wait(60) == 2

    address = f"127.0.0.1:{unit.http_port}"
    assert re.fullmatch(
        rf"make run: CELLEXPORT_HTTP_LISTEN: {address} is taken\. Stop the program that uses it, "
        rf"or choose another address, like CELLEXPORT_HTTP_LISTEN=127\.0\.0\.1:\d+\.\n",
        output.read_text(),
    )
