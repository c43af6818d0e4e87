"""The SQLite store under faults: locked by others, out of space, read-only, or on a failing disk."""

import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import snapshots
from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from cellexport.v1.exporter_pb2 import ClaimedExport
from injection import disk, failing, fill, needs_mount, remount, slow_to_read, warm
from oracle import Oracle, unchanged
from unit import HandExporter, Program, Unit, answered, eventually, meanwhile, needs

# A program that opens the server's database, reads from it and closes it.
READ = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
assert connection.execute("SELECT count(*) FROM export").fetchone() == (1,)
connection.close()
"""
# The HTTP status and the code of the answer to a status request while the store is unavailable.
UNKNOWN = (503, "PR503-SV-0003")


def refusal(exporter: HandExporter, claimed: ClaimedExport, sequence: int, done: int) -> tuple[str, str, str]:
    """Send a report that must be refused; return the gRPC status, the reason and the code of the refusal."""
    with pytest.raises(grpc.RpcError) as error:
        exporter.report(claimed, sequence, done)
    info = client.error_info(error.value)
    assert info is not None
    return error.value.code().name, info.reason, info.metadata["personium_code"]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a write lock on the database, like another program during a transaction."""
    other = sqlite3.connect(database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
    finally:
        other.close()


def first_status(unit: Unit) -> CellExport:
    """Wait until the server answers, and return the cell's status."""
    eventually(lambda: answered(unit.get))
    return unit.get()


@needs("strace")
@pytest.mark.long
@pytest.mark.fault("F41")
@pytest.mark.timeout(150)
def test_a_database_that_is_locked_for_long_stops_no_status_and_costs_no_export(unit: Unit) -> None:
    slow = slow_to_read(unit.add_large_file(40))
    unit.start_server()
    unit.start_gateway()
    unit.start_exporter(*slow)
    warm(unit)

    with Oracle(unit):
        unit.begin("snap")
        eventually(lambda: unit.get().exportation.progress_percent >= 2)

        with locked(unit.directory / "export.db"):
            begun = time.monotonic()
            seen = set()
            while time.monotonic() - begun < 10:
                answer = unit.http()
                seen.add((answer.status, answer.json()["status"]))
                threading.Event().wait(0.02)
        assert seen == {(200, "exportation in progress")}
        status = unit.wait_until_ready(within=100)
        assert status.last_outcome.result == Outcome.RESULT_SUCCEEDED
    snapshots.read(unit.snapshots / "demo" / "snap.zip")


@pytest.mark.fault("F41")
def test_reports_to_a_locked_database_are_refused_soon_and_delay_no_other_call(unit: Unit) -> None:
    unit.start_server()
    unit.begin()

    with Oracle(unit), unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)

        with locked(unit.directory / "export.db"), unchanged(unit), waiting_times(unit) as waited:
            for sequence in range(2, 6):
                begun = steady()
                assert refusal(exporter, claimed, sequence, 50) == ("UNAVAILABLE", "STORE_UNAVAILABLE", UNKNOWN[1])
                assert steady() - begun < 1.5
        # Each refused report waits half a second for the database's lock. If the server's event loop waited too, status
        # requests would take as long.
        assert statistics.median(waited) < 0.2
        exporter.report(claimed, 6, 50)
        exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)


@contextmanager
def waiting_times(unit: Unit) -> Iterator[list[float]]:
    """Poll the status over gRPC while the context is open, and yield the list of seconds that the answers took."""
    times: list[float] = []

    def ask(over: threading.Event) -> None:
        while not over.is_set():
            begun = steady()
            unit.get()
            times.append(steady() - begun)

    with meanwhile(ask):
        yield times


@pytest.fixture
def small_disk(unit: Unit) -> Iterator[Path]:
    """Yield the directory of a disk of 2 MiB for the database alone."""
    with disk(unit.directory / "store", "size=2m") as place:
        yield place


def start_server_on(unit: Unit, place: Path) -> Program:
    return unit.start_server(CELLEXPORT_STORE=f"sqlite:///{place}/export.db")


@needs_mount
@pytest.mark.fault("F43")
def test_a_full_disk_refuses_reports_whole_and_works_again_once_there_is_room(unit: Unit, small_disk: Path) -> None:
    server = start_server_on(unit, small_disk)
    unit.start_gateway()
    warm(unit)
    unit.begin()

    with Oracle(unit), unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)
        filler = fill(small_disk)
        full = time.monotonic()
        sequence = 1

        with unchanged(unit):
            # Send refused reports for longer than the lease. A server that can't store reports must not end the export
            # because reports are missing.
            while time.monotonic() - full < unit.lease_seconds + 1:
                sequence += 1
                answer = refusal(exporter, claimed, sequence, 50)
                assert answer == ("RESOURCE_EXHAUSTED", "NO_SPACE", "PR503-SV-0005")
                assert unit.status()["progress"] == "10%"
                threading.Event().wait(0.1)
        unit.add_cell("other")
        start = unit.http("POST", "/other/__export", body=b"{}")
        assert (start.status, start.code) == (503, "PR503-SV-0005")
        assert unit.status("other") == {"status": "ready"}
        filler.unlink()
        exporter.report(claimed, sequence + 1, 60)
        last = unit.get()
        assert last.exportation.progress_percent == 60
        assert server.process.poll() is None
        server.kill()
        start_server_on(unit, small_disk)

        assert first_status(unit) == last


@needs_mount
@pytest.mark.fault("F44")
def test_a_store_that_is_read_only_at_the_start_is_reported_with_its_path_and_reason(
    unit: Unit, small_disk: Path
) -> None:
    first = start_server_on(unit, small_disk)
    assert first.terminate() == 0

    remount(small_disk, "ro")
    second = unit.start("server", CELLEXPORT_STORE=f"sqlite:///{small_disk}/export.db")
    assert second.process.wait(60) == 2
    message = second.log.read_text()
    assert message.count("\n") == 1
    assert f"{small_disk}/export.db" in message
    assert "Read-only file system" in message


@needs("setpriv")
@needs_mount
@pytest.mark.fault("F44")
def test_a_database_without_write_permission_is_reported_at_the_start(unit: Unit) -> None:
    first = unit.start_server()
    assert first.terminate() == 0
    for path in unit.directory.glob("export.db*"):
        path.chmod(0o444)

    (unit.directory / "export.db.lock").unlink()
    second = unit.start("server", "setpriv", "--bounding-set=-dac_override,-dac_read_search")
    assert second.process.wait(60) == 2
    message = second.log.read_text()
    assert message.count("\n") == 1
    assert f"{unit.directory}/export.db" in message
    assert "Permission denied" in message


def database_files(unit: Unit) -> list[Path]:
    return [unit.directory / f"export.db{ending}" for ending in ("", "-wal", "-shm", "-journal")]


def honest(unit: Unit) -> bool:
    """Return whether the server returns the status. If it does, the progress must be the acknowledged 10 %."""
    answer = unit.http()
    if answer.status != 200:
        assert (answer.status, answer.code) == UNKNOWN
        return False
    assert answer.json()["progress"] == "10%"
    return True


@needs("strace")
@pytest.mark.parametrize(
    ("calls", "error"),
    [
        pytest.param("write,pwrite64,ftruncate", "EROFS", marks=pytest.mark.fault("F44"), id="read-only"),
        pytest.param("fsync,fdatasync", "EIO", marks=pytest.mark.fault("F48"), id="fsync"),
        pytest.param("write,pwrite64", "EIO", marks=pytest.mark.fault("F48"), id="write"),
    ],
)
def test_a_report_that_a_failing_disk_did_not_store_is_never_shown(unit: Unit, calls: str, error: str) -> None:
    server = unit.start_server()
    unit.start_gateway()
    warm(unit)
    unit.begin()

    with Oracle(unit), unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)

        with unchanged(unit), failing(server, calls, error, *database_files(unit)) as failed:
            begun = time.monotonic()
            sequence = 1
            # Report for longer than the lease. The reports are not stored, but they show that the exporter lives, so
            # its export goes on.
            while time.monotonic() - begun < unit.lease_seconds + 1:
                sequence += 1
                assert not answered(exporter.report, claimed, sequence, 50)
                eventually(lambda: honest(unit), within=3)
            assert failed.read_text().count("INJECTED") >= sequence - 1
        eventually(lambda: answered(exporter.report, claimed, sequence + 1, 60), within=unit.lease_seconds)
        last = unit.get()
        assert last.exportation.progress_percent == 60
        server.kill()
        unit.start_server()

        assert first_status(unit) == last


@needs("strace")
@pytest.mark.fault("F48")
def test_an_end_that_the_disk_did_not_store_is_reported_again_until_it_is_stored(unit: Unit) -> None:
    # The export takes two seconds: it ends while the database's disk fails.
    slow = slow_to_read(unit.add_large_file(5))
    server = unit.start_server()
    unit.start_exporter(*slow)

    with Oracle(unit):
        unit.begin("snap")
        eventually(lambda: unit.get().exportation.bytes_done > 0)
        with failing(server, "fsync,fdatasync", "EIO", *database_files(unit)):
            threading.Event().wait(unit.lease_seconds + 1)
            assert not list(unit.snapshots.glob("demo/*.zip"))
        first_status(unit)
        status = unit.wait_until_ready()
        assert (status.state, status.last_outcome.result) == (CellExport.STATE_READY, Outcome.RESULT_SUCCEEDED)
    snapshots.read(unit.snapshots / "demo" / "snap.zip")


def test_a_program_that_only_reads_the_database_loses_no_writes(unit: Unit) -> None:
    server = unit.start_server()
    unit.begin()
    database = unit.directory / "export.db"

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        # Report for nearly two seconds, in which the server checks its store several times (at least three times a
        # lease).
        for sequence in range(1, 10):
            exporter.report(claimed, sequence, sequence)
            threading.Event().wait(0.2)
        subprocess.run([sys.executable, "-c", READ, database], check=True)
        exporter.report(claimed, 10, 60)
    last = unit.get()
    server.kill()
    unit.start_server()

    assert unit.get() == last
