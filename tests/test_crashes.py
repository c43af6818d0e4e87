"""Programs that are killed, paused or restarted during an export, one at a time."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import snapshots
from canary import steady
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from injection import slow_to_read
from oracle import Oracle
from unit import CUT_OFF, Unit, answered, eventually, meanwhile, needs

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def busy_unit(unit: Unit) -> Unit:
    """Return a unit whose exporter runs the export `busy`. `programs` are server, gateway, exporter, in this order."""
    unit.add_large_file(640)
    return begin_busy(unit)


@pytest.fixture
def slow_unit(unit: Unit) -> Unit:
    """Return a unit like `busy_unit`, whose export takes 16 seconds and little of the processor's time."""
    return begin_busy(unit, *slow_to_read(unit.add_large_file(40)))


def begin_busy(unit: Unit, *before: str) -> Unit:
    unit.start_server()
    unit.start_gateway()
    unit.start_exporter(*before)
    unit.begin("busy")
    eventually(lambda: unit.get().exportation.progress_percent >= 3)
    return unit


@contextmanager
def watching(unit: Unit) -> Iterator[list[tuple[float, int, str]]]:
    """Poll the status over HTTP while the context is open, and yield the list of answers.

    An answer is the time on the monotonic clock, the HTTP status (0 if none came), and the body's `status` or `code`.
    """
    answers: list[tuple[float, int, str]] = []

    def ask(over: threading.Event) -> None:
        while not over.is_set():
            try:
                answer = unit.http()
                answers.append(
                    (time.monotonic(), answer.status, answer.json().get("status", answer.json().get("code")))
                )
            except OSError:
                answers.append((time.monotonic(), 0, "nothing"))
            over.wait(0.05)

    with meanwhile(ask):
        yield answers


def files(unit: Unit) -> list[str]:
    return sorted(path.name for path in (unit.snapshots / "demo").iterdir())


def wait_for_the_end(unit: Unit) -> CellExport:
    status = unit.wait_until_ready(within=100)
    if status.last_outcome.result == Outcome.RESULT_SUCCEEDED:
        assert files(unit) == ["busy.zip"]
    return status


@needs("strace")
@pytest.mark.fault("F01")
@pytest.mark.long
def test_a_killed_server_loses_nothing_and_the_export_goes_on(slow_unit: Unit) -> None:
    server = slow_unit.programs[0]
    assert slow_unit.http().status == 200

    with Oracle(slow_unit), watching(slow_unit) as answers:
        before = slow_unit.get()
        server.kill()
        eventually(lambda: any(status == 503 for _, status, _ in answers))
        slow_unit.start_server()
        eventually(lambda: answered(slow_unit.get))
        after = slow_unit.get()
        eventually(lambda: answers[-1][1] == 200)
        assert after.exportation.start_time == before.exportation.start_time
        assert after.exportation.progress_percent >= before.exportation.progress_percent
        assert wait_for_the_end(slow_unit).last_outcome.result == Outcome.RESULT_SUCCEEDED
        done = time.monotonic()
    early = [answer for when, _, answer in answers if when < done - 1]
    assert set(early) <= {"exportation in progress", "PR503-SV-0002"}
    snapshots.read(slow_unit.snapshots / "demo" / "busy.zip")


@pytest.mark.fault("F02")
def test_a_killed_exporter_ends_its_export_within_the_lease(busy_unit: Unit) -> None:
    exporter = busy_unit.programs[2]
    assert busy_unit.http().status == 200

    with Oracle(busy_unit):
        exporter.kill()
        killed = steady()
        assert busy_unit.status()["status"] == "exportation in progress"
        status = busy_unit.wait_until_ready()
        assert steady() - killed < busy_unit.lease_seconds + 1
        assert busy_unit.status() == {"status": "ready"}
        assert (status.last_outcome.result, status.last_outcome.reason) == (
            Outcome.RESULT_INTERRUPTED,
            Outcome.REASON_LEASE_EXPIRED,
        )
        assert files(busy_unit) == ["busy.error"]

        (busy_unit.directory / "cells" / "demo" / "webdav" / "large").unlink()
        busy_unit.start_exporter()
        busy_unit.begin("busy")

        assert wait_for_the_end(busy_unit).last_outcome.result == Outcome.RESULT_SUCCEEDED


@pytest.mark.fault("F04")
def test_a_killed_gateway_is_missed_by_nobody_else(busy_unit: Unit) -> None:
    gateway = busy_unit.programs[1]
    gateway.kill()
    eventually(lambda: not _answers(busy_unit))
    before = busy_unit.get().exportation.progress_percent
    busy_unit.start_gateway()
    assert busy_unit.status()["status"] == "exportation in progress"
    assert busy_unit.get().exportation.progress_percent >= before


def test_a_killed_worker_of_the_gateway_is_replaced(unit: Unit) -> None:
    unit.start_server()
    gateway = unit.start_gateway()
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    worker = next(child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{worker}/exe").exists())
    eventually(lambda: _answers(unit))
    assert unit.http().status == 200


@pytest.mark.fault("F08")
def test_a_server_shuts_down_although_exporters_wait(unit: Unit) -> None:
    server = unit.start_server()
    unit.start_exporter()
    begun = steady()
    assert server.terminate() == 0
    assert steady() - begun < 3
    unit.start_server()
    unit.begin("after")
    assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_while_a_server_is_replaced_each_request_gets_the_status_or_503(unit: Unit) -> None:
    server = unit.start_server()
    unit.start_gateway()

    with ExitStack() as stack:
        watches = [stack.enter_context(watching(unit)) for _ in range(8)]
        for _ in range(4):
            eventually(lambda: all(answers and answers[-1][1] == 200 for answers in watches))
            assert server.terminate() == 0
            server = unit.start_server()
    seen = {(status, text) for answers in watches for _, status, text in answers}

    assert seen <= {(200, "ready"), (503, "PR503-SV-0002")}


def test_an_exporter_that_was_paused_past_its_lease_publishes_nothing(busy_unit: Unit) -> None:
    exporter = busy_unit.programs[2]
    exporter.signal(signal.SIGSTOP)
    assert busy_unit.wait_until_ready().last_outcome.reason == Outcome.REASON_LEASE_EXPIRED

    exporter.signal(signal.SIGCONT)
    exporter.wait_for_log("export abandoned: it no longer belongs to this exporter")
    assert files(busy_unit) == ["busy.error"]
    (busy_unit.directory / "cells" / "demo" / "webdav" / "large").unlink()
    busy_unit.begin("busy")

    assert wait_for_the_end(busy_unit).last_outcome.result == Outcome.RESULT_SUCCEEDED


@needs("strace")
@pytest.mark.fault("F06")
def test_a_paused_server_costs_no_living_exporter_its_lease(slow_unit: Unit) -> None:
    server = slow_unit.programs[0]
    assert slow_unit.http().status == 200

    server.signal(signal.SIGSTOP)
    begun = steady()
    answer = slow_unit.http()
    assert (answer.status, answer.code) == (504, "PR504-SV-0001")
    assert steady() - begun < 3
    threading.Event().wait(slow_unit.lease_seconds)
    server.signal(signal.SIGCONT)

    assert slow_unit.get().state == CellExport.STATE_EXPORTING
    assert wait_for_the_end(slow_unit).last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_an_exporter_publishes_only_after_the_server_was_heard(unit: Unit) -> None:
    unit.add_large_file(200)
    server = unit.start_server()
    exporter = unit.start_exporter()

    unit.begin("late")
    eventually(lambda: unit.get().exportation.progress_percent > 0)
    server.kill()
    part = next((unit.snapshots / "demo").glob("*.part"))
    eventually(lambda: _is_written(part))
    assert files(unit) == [part.name]
    unit.start_server()
    unit.wait_until_ready(within=unit.lease_seconds + 5)

    assert files(unit) == ["late.zip"]
    assert exporter.process.poll() is None


@needs("strace")
def test_an_export_published_by_an_exporter_that_died_before_saying_so_has_succeeded(unit: Unit) -> None:
    unit.start_server()
    # The exporter's first fsync is for the unfinished snapshot (`.part`). Its second is for the directory, after the
    # `.part` file was renamed to the zip: there the exporter dies.
    inject = "inject=fsync:signal=SIGKILL:when=2"
    exporter = unit.start_exporter("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", inject)

    unit.begin("published")
    exporter.process.wait(60)
    status = unit.wait_until_ready(within=unit.lease_seconds + 2)
    assert status.last_outcome.result == Outcome.RESULT_SUCCEEDED
    assert files(unit) == ["published.zip"]
    snapshots.read(unit.snapshots / "demo" / "published.zip")


def test_parts_of_the_dead_are_swept_and_those_of_the_living_are_not(busy_unit: Unit) -> None:
    dead = busy_unit.snapshots / "demo" / "old.0123456789abcdef.1.part"
    dead.write_bytes(b"left behind")
    other = busy_unit.snapshots / "demo" / "other.txt"
    other.write_bytes(b"not ours")
    busy_unit.start_exporter()
    assert not dead.exists()
    assert other.exists()
    assert len(list(other.parent.glob("busy.*.part"))) == 1


@pytest.mark.fault("F05")
def test_a_gateway_that_starts_first_finds_the_server_when_it_comes(unit: Unit) -> None:
    gateway = unit.start_gateway()
    begun = steady()

    answer = unit.http()
    assert steady() - begun < 3
    assert (answer.status, answer.code) == (503, "PR503-SV-0002")
    assert answer.headers["retry-after"] == "1"
    unit.start_server()
    eventually(lambda: unit.http().status == 200, within=2)

    assert gateway.process.poll() is None


def _answers(unit: Unit) -> bool:
    try:
        unit.http()
    except CUT_OFF:
        return False
    return True


def _is_written(part: Path) -> bool:
    """Return whether a `.part` file (an unfinished snapshot) ends like a complete zip."""
    with part.open("rb") as file:
        return b"PK\x05\x06" in file.read()[-1024:]
