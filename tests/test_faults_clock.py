"""Time under faults: the server's wall clock jumps while an export runs, and a report arrives far too late.

Leases are measured on the monotonic clock, which doesn't jump. Tokens are judged by the wall clock, which does.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from cellexport.v1.exporter_pb2 import Progress, ReportProgressRequest
from injection import Wire
from oracle import Oracle, unchanged
from tokens import ACCESS_FILE, SECRET, resident, verdict
from unit import HandExporter, Unit, eventually, needs

HOUR = 3600
# The library that the command `faketime` preloads. The test preloads it itself, because the command would leave the
# server running when the command is killed.
LIBRARY = "/usr/$LIB/faketime/libfaketime.so.1"
JUMPS = pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "back"])

SetClock = Callable[[int], None]


@pytest.fixture
def set_clock(unit: Unit, tmp_path: Path) -> Iterator[SetClock]:
    """Start a server, and yield a function that sets its wall clock ahead by a number of seconds (below 0: back)."""
    offset = tmp_path / "offset"
    offset.write_text("+0")
    server = unit.start_server(
        LD_PRELOAD=LIBRARY,
        FAKETIME_TIMESTAMP_FILE=str(offset),
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        FAKETIME_NO_CACHE="1",
        CELLEXPORT_UNIT_SECRET=SECRET,
    )

    def set_clock(seconds: int) -> None:
        fresh = offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+}")
        fresh.replace(offset)

    yield set_clock
    # Don't kill the server: faketime's library removes its shared memory only when the server exits normally.
    server.terminate()


def ahead(status: CellExport) -> float:
    """Return the seconds by which the server's wall clock was ahead of the test's when the status last changed."""
    return status.update_time.ToNanoseconds() / 1e9 - time.time()


@needs("faketime")
@JUMPS
@pytest.mark.fault("F49")
def test_a_living_exporter_keeps_its_export_whatever_the_clock_says(
    unit: Unit, set_clock: SetClock, seconds: int
) -> None:
    begun = unit.begin()
    with Oracle(unit, exporter=False), unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 1)
        set_clock(seconds)
        jumped = time.monotonic()
        sequence = 1

        # Report for longer than the lease, after which the server would end the export of a silent exporter.
        while time.monotonic() - jumped < 1.5 * unit.lease_seconds:
            sequence += 1
            exporter.report(claimed, sequence, sequence, 1000)
            threading.Event().wait(unit.lease_seconds / 10)
        status = unit.get()
        assert abs(ahead(status) - seconds) < HOUR / 2
        assert status.exportation.start_time == begun.exportation.start_time
        ended = exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
        assert ended.last_outcome.result == Outcome.RESULT_SUCCEEDED


@needs("faketime")
@JUMPS
@pytest.mark.fault("F49")
def test_a_dead_exporter_is_given_up_on_within_its_lease_whatever_the_clock_says(
    unit: Unit, set_clock: SetClock, seconds: int
) -> None:
    unit.begin()
    with Oracle(unit, exporter=False), unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        set_clock(seconds)
        reported = time.monotonic()
        exporter.report(claimed, 1, 10)
        assert abs(ahead(unit.get()) - seconds) < HOUR / 2
        # A status that is received within a lease of the report shows the export.
        while (state := unit.get().state) and time.monotonic() - reported < unit.lease_seconds:
            assert state == CellExport.STATE_EXPORTING
        # Other tests check how soon a dead exporter's export ends. Here the end must not be an hour late.
        status = unit.wait_until_ready(within=30)
        assert status.last_outcome.reason == Outcome.REASON_LEASE_EXPIRED


@needs("faketime")
@pytest.mark.fault("F49")
def test_tokens_are_judged_by_the_wall_clock(unit: Unit, set_clock: SetClock) -> None:
    (unit.directory / "cells" / "demo" / "cell.toml").write_text(ACCESS_FILE)
    token = resident()
    said = functools.partial(verdict, unit, token)
    unit.start_gateway()
    allowed = said()
    set_clock(2 * HOUR)

    eventually(lambda: said() == "PR401-AU-0002")
    set_clock(0)
    eventually(lambda: said() == allowed)


@pytest.mark.fault("F53")
def test_a_report_that_arrives_after_its_lease_is_refused_and_changes_nothing(unit: Unit) -> None:
    unit.start_server()
    unit.begin()

    with (
        Oracle(unit, exporter=False),
        Wire(unit.grpc_port) as wire,
        client.channel(f"127.0.0.1:{wire.port}") as channel,
    ):
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        exporter.report(claimed, 1, 10)
        wire.hold()
        progress = Progress(work_done=50, work_total=100)
        request = ReportProgressRequest(cell="demo", lease=claimed.lease, sequence=2, progress=progress)
        late = exporter.stub.ReportProgress.future(request, metadata=exporter.metadata, timeout=60)
        over = unit.wait_until_ready()
        assert over.last_outcome.reason == Outcome.REASON_LEASE_EXPIRED
        assert not late.done()

        with unchanged(unit):
            wire.let_go()
            with pytest.raises(grpc.RpcError) as error:
                late.result()
            assert error.value.code() == grpc.StatusCode.ABORTED
            info = client.error_info(error.value)
            assert info is not None
            assert info.reason == "LEASE_LOST"
        # The expired lease must not be valid for the cell's next export either.
        unit.begin()
        next_one = exporter.must_claim()
        with unchanged(unit), pytest.raises(grpc.RpcError):
            exporter.report(claimed, 3, 60)
        exporter.finish(next_one, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)
