"""Programs that are killed, paused, shut down, short of memory or forked: their answers, and the state afterwards."""

import functools
import http.client
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import snapshots
from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, Outcome, StartCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from cellexport.v1.exporter_pb2 import ClaimExportRequest, ClaimExportResponse, Progress, ReportProgressRequest
from oracle import Oracle, unchanged, use
from unit import (
    CUT_OFF,
    ROOT,
    TOKEN,
    HandExporter,
    Program,
    Unit,
    accepts,
    answered,
    eventually,
    free_port,
    needs,
    needs_root,
)

# The longest time in which the gateway answers any request, whatever happens to the server, in seconds.
IN_TIME = 3.0
# The longest time that a shutdown may take, in seconds.
GRACE = 10.0


def files(unit: Unit) -> list[str]:
    return sorted(path.name for path in (unit.snapshots / "demo").iterdir())


# Killed servers.


@pytest.mark.fault("F01")
def test_calls_to_a_killed_server_end_at_once_and_requests_in_time(unit: Unit) -> None:
    server = unit.start_server()
    unit.start_gateway()
    assert unit.http().status == 200

    with Oracle(unit), unit.channel() as channel:
        exporter = HandExporter(channel)
        request = ClaimExportRequest(request_id="0123456789abcdef", wait=Duration(seconds=30))
        waiting = exporter.stub.ClaimExport.future(request, metadata=exporter.metadata, timeout=60)
        assert exporter.claim(wait=0) is None
        server.kill()
        killed = steady()
        assert waiting.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as raised:
            exporter.claim(wait=0)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert steady() - killed < 2

        for _ in range(5):
            begun = steady()
            answer = unit.http()
            assert steady() - begun < IN_TIME
            assert (answer.status, answer.code) == (503, "PR503-SV-0002")
            assert answer.headers["retry-after"] == "1"
        unit.start_server()
        eventually(lambda: unit.http().status == 200, within=3)


@pytest.mark.fault("F01")
@pytest.mark.long
def test_an_exporter_retries_reports_after_random_pauses(unit: Unit) -> None:
    unit.add_large_file(50 * 1024)
    server = unit.start_server()
    unit.start_exporter()

    unit.begin()
    eventually(lambda: unit.get().exportation.bytes_done > 0)
    # A server whose database file is gone refuses every report at once, and logs the refusal: the test reads the times
    # of reports from its log.
    (unit.directory / "export.db").unlink()
    eventually(lambda: len(refused_reports(server)) > 20, within=40)
    pauses = [later - earlier for earlier, later in itertools.pairwise(refused_reports(server))]

    # After a refused report the exporter pauses for 0.25 to 0.75 seconds, plus the 0.2 seconds between any two reports.
    # A busy machine makes pauses longer and never shorter, so check only the shortest.
    assert 0.4 < min(pauses) < 0.65


def refused_reports(server: Program) -> list[float]:
    lines = [
        line for line in server.lines() if line["message"] == "call refused" and line["method"] == "ReportProgress"
    ]
    return [datetime.fromisoformat(line["time"]).timestamp() for line in lines]


# Killed exporters.


@pytest.mark.fault("F02")
@pytest.mark.long
@pytest.mark.timeout(240)
def test_an_exporter_that_is_killed_at_any_moment_leaves_a_whole_snapshot_or_none(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda seed: _kill_exporters(tmp_path / str(seed), seed), range(4)))
    # More than 20 of the 100 kills must have hit a running export, or the test has proved little.
    assert sum(counts) > 20


def _kill_exporters(directory: Path, seed: int) -> int:
    """Kill 25 exporters, each at a random moment of its export, and return the number of interrupted exports."""
    moments = random.Random(seed)
    interrupted = 0
    directory.mkdir()
    with Unit(directory / "unit", lease_seconds=1) as unit:
        unit.add_cell("demo")
        unit.add_large_file(20)
        unit.start_server()
        exporter = unit.start_exporter()
        with Oracle(unit):
            whole = _export(unit, "first")
            (unit.snapshots / "demo" / "first.zip").unlink()
            for number in range(25):
                name = f"round-{number}"
                unit.begin(name)
                threading.Event().wait(moments.uniform(0, 1.1) * whole)
                exporter.kill()
                exporter = unit.start("server.exporter")
                ended = _wait_for_the_end(unit)
                exporter.wait_for_log("waiting for exports")
                if ended.result == Outcome.RESULT_INTERRUPTED:
                    interrupted += 1
                    assert files(unit) == [f"{name}.error"]
                    whole = _export(unit, name)
                assert files(unit) == [f"{name}.zip"]
                snapshots.read(unit.snapshots / "demo" / f"{name}.zip")
                (unit.snapshots / "demo" / f"{name}.zip").unlink()
    return interrupted


def _export(unit: Unit, name: str) -> float:
    """Run an export undisturbed, and return its duration in seconds."""
    begun = time.monotonic()
    unit.begin(name)
    assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED
    return time.monotonic() - begun


def _wait_for_the_end(unit: Unit) -> Outcome:
    """Wait for the end of an export whose exporter was killed, and return its outcome.

    If the export was still queued, the next exporter runs it.
    """
    killed = steady()
    seen = set()

    def ended() -> Outcome | None:
        status = unit.get()
        seen.add(status.exportation.progress_percent)
        return status.last_outcome if status.state == CellExport.STATE_READY else None

    outcome = eventually(ended)
    if outcome.result == Outcome.RESULT_INTERRUPTED:
        assert outcome.reason == Outcome.REASON_LEASE_EXPIRED
        assert steady() - killed < unit.lease_seconds + 2
        # At most two percentages are seen, because a dead exporter reports nothing more: only its last report may still
        # have been in transit. The status after the end shows 0.
        assert len(seen - {0}) <= 2
    return outcome


# Killed gateways.


@pytest.mark.fault("F04")
def test_a_gateway_that_is_killed_under_load_breaks_its_own_connections_only(unit: Unit) -> None:
    server = unit.start_server()
    gateway = unit.start_gateway()

    with Oracle(unit) as oracle, unchanged(unit), _load(unit) as results:
        eventually(lambda: sum(result == 200 for result in results) >= 50)
        eventually(lambda: oracle.history[unit.grpc_port, "demo"])
        before, stored = use(server).files, _store(unit)
        gateway.kill()
        eventually(lambda: not accepts(unit.http_port))
        broken = len(results)
        unit.start_gateway()
        eventually(lambda: results[broken:].count(200) >= 50)
        eventually(lambda: use(server).files <= before)
        assert _store(unit) == stored

    assert set(results) == {200, "broken"}


def _store(unit: Unit) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in unit.directory.glob("export.db*")}


@contextmanager
def _load(unit: Unit) -> Iterator[list[int | str]]:
    """Send fifty requests a second over five kept-alive connections, and yield the list of statuses (or `broken`)."""
    results: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with closing(http.client.HTTPConnection("127.0.0.1", unit.http_port, timeout=60)) as connection:
                try:
                    while not over.wait(0.1):
                        connection.request("GET", "/demo/__export", headers={"Authorization": f"Bearer {TOKEN}"})
                        response = connection.getresponse()
                        response.read()
                        results.append(response.status)
                except CUT_OFF:
                    results.append("broken")

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        over.set()
        for thread in threads:
            thread.join()


# Paused servers.


@pytest.mark.fault("F06")
@pytest.mark.long
def test_a_resumed_server_skips_calls_whose_callers_are_gone(unit: Unit) -> None:
    unit.add_cell("other")
    unit.add_cell("third")
    server = unit.start_server()
    unit.start_gateway()
    assert unit.http().status == 200

    with Oracle(unit, cells=("demo", "other", "third"), exporter=False), unit.channel() as channel:
        exporter = HandExporter(channel)
        unit.begin()
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)
        before = unit.get()
        server.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        late = ReportProgressRequest(
            cell="demo", lease=claimed.lease, sequence=2, progress=Progress(work_done=50, work_total=100)
        )
        _expect_deadline(1.0, lambda: exporter.stub.ReportProgress(late, metadata=exporter.metadata, timeout=1))
        start = CellExportServiceStub(channel).StartCellExport
        asked = StartCellExportRequest(cell="other")
        _expect_deadline(1.0, lambda: start(asked, metadata=exporter.metadata, timeout=1))

        for method, cell in (("GET", "demo"), ("POST", "third")):
            begun = steady()
            answer = unit.http(method, f"/{cell}/__export")
            assert (answer.status, answer.code) == (504, "PR504-SV-0001")
            assert steady() - begun < IN_TIME
        threading.Event().wait(20 - (time.monotonic() - stopped))
        server.signal(signal.SIGCONT)
        eventually(lambda: unit.http().status == 200)
        # Give the resumed server time to execute every call that it received before and during its pause.
        threading.Event().wait(1)
        assert unit.get() == before
        assert not any(unit.get(cell).HasField("update_time") for cell in ("other", "third"))
        # The server must not count its own pause of 20 seconds as silence of the exporter: the lease is still valid.
        exporter.report(claimed, 3, 60)
        assert unit.get().exportation.progress_percent == 60
        exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)


def _expect_deadline(seconds: float, call: Callable[[], object]) -> None:
    begun, begun_steady = time.monotonic(), steady()
    with pytest.raises(grpc.RpcError) as raised:
        call()
    took, took_steady = time.monotonic() - begun, steady() - begun_steady
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert seconds - 0.1 < took
    assert took_steady < seconds + 0.5


# Programs that shut down.


@pytest.mark.fault("F08")
@needs_root
@needs("strace")
def test_a_server_that_shuts_down_answers_open_calls_and_ends_waiting_calls(unit: Unit) -> None:
    unit.add_cell("other")
    server = unit.start_server()
    unit.start_gateway()
    assert unit.http().status == 200
    oracle = Oracle(unit, cells=("demo", "other"), exporter=False)

    with oracle, unit.channel() as channel, ThreadPoolExecutor(2) as pool:
        exporter = HandExporter(channel)
        unit.begin()
        claimed = exporter.must_claim()
        waiting = [
            exporter.stub.ClaimExport.future(
                ClaimExportRequest(request_id=f"{number:016}", wait=Duration(seconds=30)),
                metadata=exporter.metadata,
                timeout=60,
            )
            for number in range(20)
        ]

        with _slow_disk(server, unit.directory.parent / "strace") as syncs:
            start = pool.submit(unit.http, "POST", "/other/__export")
            eventually(lambda: syncs() > 0)
            report = pool.submit(exporter.report, claimed, 1, 70)
            # Give the report time to reach the server: less than a second, which each sync of the server's disk takes
            # here.
            threading.Event().wait(0.4)
            server.signal(signal.SIGTERM)
            signalled = steady()
            assert {_reason(call) for call in waiting} == {("UNAVAILABLE", "SERVER_SHUTDOWN")}
            assert steady() - signalled < GRACE
            assert server.process.wait(60) == 0
            assert steady() - signalled < GRACE + 1
        # The start and the report were open when the server was asked to shut down. Both succeed.
        report.result()
        assert start.result().status == 202
        with pytest.raises(grpc.RpcError) as raised:
            exporter.report(claimed, 2, 80)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (unit.http().status, unit.http().code) == (503, "PR503-SV-0002")
        unit.start_server()
        eventually(lambda: answered(unit.get))
        assert unit.get().exportation.progress_percent == 70
        assert unit.get("other").state == CellExport.STATE_EXPORTING
        eventually(lambda: unit.http().status == 200, within=3)


@contextmanager
def _slow_disk(server: Program, output: Path) -> Iterator[Callable[[], int]]:
    """Delay each fsync of a server by a second, and yield a function that returns the number of fsyncs begun."""
    inject = "inject=fsync,fdatasync:delay_enter=1000000"
    command = ["strace", "-f", "-p", str(server.process.pid), "-e", "trace=fsync,fdatasync", "-e", inject]
    with output.open("wb") as file:
        strace = subprocess.Popen(command, stderr=file)
    try:
        eventually(lambda: b"attached" in output.read_bytes())
        yield lambda: output.read_bytes().count(b"sync(")
    finally:
        strace.terminate()
        strace.wait(10)


def _reason(call: "grpc._CallFuture[ClaimExportResponse]") -> tuple[str, str]:
    error = call.exception(GRACE)
    assert isinstance(error, grpc.RpcError)
    info = client.error_info(error)
    return error.code().name, "" if info is None else info.reason


@pytest.mark.fault("F09")
def test_an_exporter_that_shuts_down_gives_its_export_back_at_once(unit: Unit) -> None:
    unit.add_large_file(300)
    unit.start_server()
    unit.start_gateway()
    exporter = unit.start_exporter()
    assert unit.http().status == 200

    with Oracle(unit):
        unit.begin("cut")
        eventually(lambda: unit.get().exportation.progress_percent >= 40)

        exporter.signal(signal.SIGTERM)
        signalled = steady()
        eventually(lambda: unit.status() == {"status": "ready"}, within=2)
        assert exporter.process.wait(60) == 0
        assert steady() - signalled < GRACE
        outcome = unit.get().last_outcome
        assert (outcome.result, outcome.reason) == (Outcome.RESULT_INTERRUPTED, Outcome.REASON_SHUTDOWN)
        assert files(unit) == ["cut.error"]
        note = json.loads((unit.snapshots / "demo" / "cut.error").read_bytes())
        assert note["message"]["value"] == "Cell export was interrupted. [SHUTDOWN]"


# Exporters that run out of memory.


@pytest.mark.fault("F12")
def test_an_exporter_without_memory_ends_its_export_in_time_and_leaves_nothing_half(unit: Unit) -> None:
    unit.add_large_file(50)
    unit.start_server()
    unit.start_gateway()
    exporter = unit.start_exporter()
    assert unit.http().status == 200
    match = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{exporter.process.pid}/status").read_text())
    assert match

    with Oracle(unit):
        # Limit the exporter's address space to its present size, so that it can get no more memory.
        limit = f"--as={int(match[1]) * 1024}"
        subprocess.run(["prlimit", "--pid", str(exporter.process.pid), limit], check=True)

        unit.begin("tight")
        eventually(lambda: unit.status() == {"status": "ready"}, within=unit.lease_seconds + 2)
        outcome = unit.get().last_outcome
        # The exporter reports its failure only if it has memory left for that. If not, its lease expires.
        assert outcome.result in (Outcome.RESULT_FAILED, Outcome.RESULT_INTERRUPTED)
        exporter.kill()
        unit.start_exporter()
        assert files(unit) == ["tight.error"]
        unit.begin("tight")

        assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED
        assert files(unit) == ["tight.zip"]


# Forked applications.


@pytest.mark.fault("F15")
def test_an_application_that_was_made_before_a_fork_serves_in_every_worker(unit: Unit, tmp_path: Path) -> None:
    unit.start_server()
    ports = [free_port() for _ in range(4)]
    command = [sys.executable, str(ROOT / "tests" / "support" / "forking.py"), *map(str, ports)]
    with (tmp_path / "forking.log").open("wb") as log:
        parent = subprocess.Popen(command, env=unit.variables(), stdout=log, stderr=log)

    try:
        with Oracle(unit), ThreadPoolExecutor(8) as clients:
            for port in ports:
                eventually(functools.partial(accepts, port))
            answers = list(clients.map(lambda number: _ask_port(ports[number % 4]), range(400)))
        assert answers == [(200, b'{"status":"ready"}')] * 400
    finally:
        parent.terminate()
        parent.wait(10)


def _ask_port(port: int) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/demo/__export", headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        return response.status, response.read()
