"""A Personium unit to test with: its directory, and the programs that run on it."""

import http.client
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import (
    CancelCellExportRequest,
    CellExport,
    GetCellExportRequest,
    Outcome,
    StartCellExportRequest,
)
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from cellexport.v1.exporter_pb2 import (
    ClaimedExport,
    ClaimExportRequest,
    ClaimExportResponse,
    FinishExportRequest,
    Progress,
    ReportProgressRequest,
)
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from zygote import Process, zygote

T = TypeVar("T")

TOKEN = "master-token-for-tests"
OWNER = "http://localhost:8080/unitadmin/#owner"
UNIT_URL = "https://unit1.example/"
# Prefixes of environment variables that are read before, or while, modules are imported. A program with such variables
# can't be a fork of the zygote, which has already imported them.
_FOR_A_FRESH_INTERPRETER = ("GRPC_", "LD_", "PYTHON")
_port_numbers = itertools.count(random.SystemRandom().randrange(1_400))
ROOT = Path(__file__).parent.parent.parent
# The errors of an HTTP request to a program that is killed before its answer is complete.
CUT_OFF = (OSError, http.client.HTTPException)


def eventually(check: Callable[[], T | None], *, within: float = 60.0) -> T:
    """Call `check` until it returns neither None nor False, and return that result.

    Args:
        within: seconds on the steady clock: the number in the promise, or a long time that only detects a hang.
    """
    begun = steady()
    pause = threading.Event()
    while True:
        result = check()
        if result is not None and result is not False:
            return result
        waited = steady() - begun
        if waited > within:
            raise AssertionError(f"condition not met within {within} s")
        # Check often at first, and then less often: a check is often a call, and takes the processor from the programs.
        pause.wait(min(0.05, 0.01 + waited / 20))


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in another thread while the context is open. At its end, the event is set to make `work` return."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def needs(program: str, package: str = "") -> pytest.MarkDecorator:
    """Skip a test if a program, or a file given by its path, is missing. In CI the test runs, and fails without it.

    Args:
        package: the Debian package that has the program, if its name differs.
    """
    found = Path(program).exists() if "/" in program else shutil.which(program)
    missing = not found and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{program} is not installed (Debian: apt install {package or program})")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a disk or to drop privileges")


def refused(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[str, str]:
    """Return the status and the reason of a call that was refused by the server's code, not by gRPC."""
    info = client.error_info(error.value)
    assert info is not None
    assert info.domain == "cellexport"
    assert info.metadata["personium_code"]
    return error.value.code().name, info.reason


def answered(call: Callable[..., object], *arguments: object) -> bool:
    """Return whether a call succeeded. Errors are raised, except those of an unavailable server."""
    try:
        call(*arguments)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise
        return False
    return True


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """Return the bytes of an HTTP request.

    Args:
        line: the request line without the version.
        headers: header lines.
    """
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1") + body


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def free_port() -> int:
    """Return a port that is not in use, and that the kernel does not assign to outgoing connections.

    Each worker of pytest-xdist has 1,400 ports of its own, taken in turn. So two tests never get the same port before
    one of them listens on it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 10_000 + worker % 16 * 1_400 + next(_port_numbers) % 1_400
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Answer:
    """An HTTP response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["code"])


@dataclass
class Program:
    """A running program, and the file with its output."""

    module: str
    process: Process
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines() if line.startswith(b"{")]

    def wait_for_log(self, message: str) -> dict[str, Any]:
        def matching_line() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise AssertionError(f"exited with status {self.process.returncode}: {self.log.read_text()}")
            return next((line for line in self.lines() if line["message"] == message), None)

        return eventually(matching_line)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    def peak_memory(self) -> int:
        """Return the peak of the program's resident memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match
        return int(match[1]) * 1024


@dataclass
class Unit:
    """A unit's directory and programs. Leaving the context ends all programs."""

    directory: Path
    lease_seconds: float = 2.0
    programs: list[Program] = field(default_factory=list)
    grpc_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    # The environment variables for every program of the unit that is started from now on.
    settings: dict[str, str] = field(default_factory=dict)
    # How callers connect to the gRPC port and the REST facade; None for plaintext.
    grpc_tls: client.Tls | None = None
    http_tls: ssl.SSLContext | None = None

    def __enter__(self) -> "Unit":
        (self.directory / "cells").mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.signal(signal.SIGCONT)
                program.process.kill()
            program.process.wait(60)

    def add_cell(self, name: str, files: Mapping[str, bytes] | None = None) -> Path:
        """Make a cell, and return its `webdav` directory."""
        cell = self.directory / "cells" / name
        webdav = cell / "webdav"
        webdav.mkdir(parents=True)
        for path, content in (files or {}).items():
            (webdav / path).parent.mkdir(parents=True, exist_ok=True)
            (webdav / path).write_bytes(content)
        (cell / "cell.toml").write_text(f'owner = "{OWNER}"\n')
        return webdav

    def add_large_file(self, megabytes: int, name: str = "large") -> Path:
        """Add a file of zeros to the cell `demo`, and return it. It takes long to export, and no space on the disk."""
        path = self.directory / "cells" / "demo" / "webdav" / name
        with path.open("wb") as large:
            large.truncate(megabytes * 1024**2)
        return path

    @property
    def snapshots(self) -> Path:
        return self.directory / "snapshots"

    def variables(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CELLEXPORT_")}
        return inherited | {
            "CELLEXPORT_UNIT_DIR": str(self.directory),
            "CELLEXPORT_UNIT_URL": UNIT_URL,
            "CELLEXPORT_GRPC_LISTEN": f"127.0.0.1:{self.grpc_port}",
            "CELLEXPORT_HTTP_LISTEN": f"127.0.0.1:{self.http_port}",
            "CELLEXPORT_MASTER_TOKEN": TOKEN,
            "CELLEXPORT_LEASE_SECONDS": str(self.lease_seconds),
            **self.settings,
            **more,
        }

    def start(self, module: str, *before: str, **more: str) -> Program:
        """Start a program.

        Args:
            module: the name that `python -m` would get.
            before: words of the command line before `python`, such as `strace` and its options.
            more: variables for this program.
        """
        log = self.directory.parent / f"{module}-{secrets.token_hex(4)}.log"
        log.touch()
        process: Process
        if before or any(name.startswith(_FOR_A_FRESH_INTERPRETER) for name in {**self.settings, **more}):
            with log.open("wb") as file:
                command = [*before, sys.executable, "-m", module]
                process = subprocess.Popen(command, env=self.variables(**more), stdout=file, stderr=file)
        else:
            process = zygote().start(module, self.variables(**more), log)
        program = Program(module, process, log)
        self.programs.append(program)
        return program

    def start_server(self, *before: str, **more: str) -> Program:
        server = self.start("server", *before, **more)
        server.wait_for_log("serving")
        return server

    def start_gateway(self, **more: str) -> Program:
        gateway = self.start("gateway", **more)
        eventually(lambda: accepts(self.http_port))
        return gateway

    def start_exporter(self, *before: str, **more: str) -> Program:
        exporter = self.start("server.exporter", *before, **more)
        exporter.wait_for_log("waiting for exports")
        return exporter

    # Calls.

    def http(
        self,
        method: str = "GET",
        path: str = "/demo/__export",
        *,
        token: str | None = TOKEN,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection: http.client.HTTPConnection
        if self.http_tls:
            connection = http.client.HTTPSConnection("127.0.0.1", self.http_port, timeout=60, context=self.http_tls)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            credentials = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request(method, path, body, {**credentials, **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def raw(self, request: bytes, *, method: str = "GET", end: bool = False) -> Answer:
        """Send these bytes to the gateway; return the response. `end` closes the sending side after the bytes."""
        with socket.create_connection(("127.0.0.1", self.http_port), 60) as connection:
            connection.sendall(request)
            if end:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            names = {name.lower(): value for name, value in response.getheaders()}
            assert len(names) == len(response.getheaders()), "the response has a header twice"
            return Answer(response.status, names, response.read())

    def status(self, cell: str = "demo") -> dict[str, str]:
        answer = self.http(path=f"/{cell}/__export")
        assert answer.status == 200, answer
        return dict(answer.json())

    @contextmanager
    def channel(self, port: int | None = None) -> Iterator[grpc.Channel]:
        with client.channel(f"127.0.0.1:{port or self.grpc_port}", self.grpc_tls) as channel:
            yield channel

    def get(self, cell: str = "demo", token: str = TOKEN, port: int | None = None) -> CellExport:
        with self.channel(port) as channel:
            stub, request = CellExportServiceStub(channel), GetCellExportRequest(cell=cell)
            return stub.GetCellExport(request, metadata=client.bearer(token), timeout=60).cell_export

    def begin(self, name: str | None = None, cell: str = "demo") -> CellExport:
        """Start an export over gRPC, and return the cell's status."""
        with self.channel() as channel:
            request = StartCellExportRequest(cell=cell, name=name)
            call = CellExportServiceStub(channel).StartCellExport
            return call(request, metadata=client.bearer(TOKEN), timeout=60).cell_export

    def cancel(self, cell: str = "demo", name: str | None = None) -> CellExport:
        with self.channel() as channel:
            request = CancelCellExportRequest(cell=cell, name=name)
            call = CellExportServiceStub(channel).CancelCellExport
            return call(request, metadata=client.bearer(TOKEN), timeout=60).cell_export

    def wait_until_ready(self, cell: str = "demo", *, within: float = 60.0) -> CellExport:
        def ready() -> CellExport | None:
            status = self.get(cell)
            return status if status.state == CellExport.STATE_READY else None

        return eventually(ready, within=within)

    def wait_until_ready_or_away(self, cell: str = "demo", *, within: float = 60.0) -> CellExport:
        """Wait until the cell is ready, like `wait_until_ready`, but ignore answers that the store is unavailable."""

        def ready() -> CellExport | None:
            try:
                status = self.get(cell)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return None
            return status if status.state == CellExport.STATE_READY else None

        return eventually(ready, within=within)


class HandExporter:
    """An exporter whose calls the test makes one by one."""

    def __init__(self, channel: grpc.Channel, token: str = TOKEN) -> None:
        self.stub = ExporterServiceStub(channel)
        self.metadata = client.bearer(token)

    def claim_request(self, *, wait: int, request_id: str | None = None) -> ClaimExportRequest:
        return ClaimExportRequest(request_id=request_id or secrets.token_hex(16), wait=Duration(seconds=wait))

    def claim(self, *, wait: int = 5, request_id: str | None = None) -> ClaimedExport | None:
        request = self.claim_request(wait=wait, request_id=request_id)
        response = self.stub.ClaimExport(request, metadata=self.metadata, timeout=wait + 60)
        return response.claimed_export if response.HasField("claimed_export") else None

    def give_back(self, request_id: str) -> None:
        request = ClaimExportRequest(request_id=request_id, give_back=True)
        assert self.stub.ClaimExport(request, metadata=self.metadata, timeout=60) == ClaimExportResponse()

    def must_claim(self) -> ClaimedExport:
        claimed = self.claim()
        assert claimed is not None
        return claimed

    def report(self, claimed: ClaimedExport, sequence: int, done: int, total: int = 100) -> bool:
        """Report progress, and return whether the server asks the exporter to end the export (it was cancelled)."""
        progress = Progress(work_done=done, work_total=total)
        request = ReportProgressRequest(cell=claimed.cell, lease=claimed.lease, sequence=sequence, progress=progress)
        return self.stub.ReportProgress(request, metadata=self.metadata, timeout=60).cancel_requested

    def finish(
        self,
        claimed: ClaimedExport,
        result: Outcome.Result.ValueType,
        reason: Outcome.Reason.ValueType = Outcome.REASON_UNSPECIFIED,
    ) -> CellExport:
        request = FinishExportRequest(cell=claimed.cell, lease=claimed.lease, result=result, reason=reason)
        return self.stub.FinishExport(request, metadata=self.metadata, timeout=60).cell_export


def accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
