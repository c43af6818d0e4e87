"""Cancelled exports, and stalled exports, whose exporters report without progress."""

import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import CancelCellExportRequest, CellExport, Outcome
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from oracle import Oracle, unchanged
from tokens import ACCESS_FILE, SECRET, resident
from unit import TOKEN, HandExporter, Unit, eventually, refused

INTERRUPTED = (Outcome.RESULT_INTERRUPTED, Outcome.REASON_CANCELLED)


@pytest.fixture
def exporter(unit: Unit) -> Iterator[HandExporter]:
    unit.start_server()
    with unit.channel() as channel:
        yield HandExporter(channel)


def ending(status: CellExport) -> tuple[int, int]:
    return status.last_outcome.result, status.last_outcome.reason


def test_a_queued_export_ends_at_once_and_its_name_is_free(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("gone")
    status = unit.cancel()
    assert status.state == CellExport.STATE_READY
    assert ending(status) == INTERRUPTED
    note = (unit.snapshots / "demo" / "gone.error").read_text()
    assert note == '{"code":"PR500-CX-0001","message":{"lang":"en","value":"Cell export was interrupted. [CANCELLED]"}}'
    assert exporter.claim(wait=0) is None

    unit.begin("gone")

    assert exporter.must_claim().name == "gone"


def test_an_exporter_learns_of_it_with_its_next_report(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("running")
    claimed = exporter.must_claim()

    assert not exporter.report(claimed, 1, 10)
    status = unit.cancel()
    assert status.state == CellExport.STATE_EXPORTING
    assert status.exportation.cancel_requested
    assert exporter.report(claimed, 2, 20)
    with unchanged(unit):
        assert unit.cancel().exportation.cancel_requested
    ended = exporter.finish(claimed, *INTERRUPTED)

    assert ending(ended) == INTERRUPTED


def test_an_export_that_was_published_meanwhile_has_succeeded(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("late")
    claimed = exporter.must_claim()
    unit.cancel()
    assert exporter.finish(claimed, Outcome.RESULT_SUCCEEDED).last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_an_exporter_that_does_not_listen_is_cut_off_after_a_lease(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("deaf")
    claimed = exporter.must_claim()
    unit.cancel()
    cancelled, cancelled_steady = time.monotonic(), steady()
    sequence = 0

    while unit.get().state == CellExport.STATE_EXPORTING:
        assert steady() - cancelled_steady < unit.lease_seconds + 1
        sequence += 1
        try:
            exporter.report(claimed, sequence, 10)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED  # noqa: PT017 - only a report after the export's end is refused
        threading.Event().wait(0.1)
    assert time.monotonic() - cancelled > unit.lease_seconds - 0.5
    assert ending(unit.get()) == INTERRUPTED
    with pytest.raises(grpc.RpcError) as refusal:
        exporter.report(claimed, sequence + 1, 10)

    assert refused(refusal) == ("ABORTED", "LEASE_LOST")


def test_where_nothing_is_exported_there_is_nothing_to_cancel(unit: Unit, exporter: HandExporter) -> None:
    with unchanged(unit), pytest.raises(grpc.RpcError) as refusal:
        unit.cancel()
    assert refused(refusal) == ("FAILED_PRECONDITION", "NOT_EXPORTING")
    unit.begin("one")
    with unchanged(unit), pytest.raises(grpc.RpcError) as refusal:
        unit.cancel(name="another")
    assert refused(refusal) == ("FAILED_PRECONDITION", "NOT_EXPORTING")
    assert ending(unit.cancel(name="one")) == INTERRUPTED


def test_it_needs_root(unit: Unit) -> None:
    (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET)
    unit.begin("kept")

    for token, expected in (
        ("guessed", ("UNAUTHENTICATED", "TOKEN_INVALID")),
        (resident("staff"), ("PERMISSION_DENIED", "PRIVILEGE_LACKING")),
    ):
        with unchanged(unit), unit.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
            CellExportServiceStub(channel).CancelCellExport(
                CancelCellExportRequest(cell="demo"), metadata=client.bearer(token), timeout=5
            )
        assert refused(refusal) == expected


def test_the_bundled_exporter_stops_within_a_heartbeat_and_leaves_no_zip(unit: Unit) -> None:
    unit.add_large_file(50 * 1024)
    unit.start_server()
    unit.start_gateway()
    exporter = unit.start_exporter()

    with Oracle(unit):
        unit.begin("huge")
        eventually(lambda: unit.get().exportation.bytes_done > 0)
        unit.cancel()
        begun = steady()
        assert unit.status()["status"] in ("exportation in progress", "ready")
        status = unit.wait_until_ready(within=5)
        assert steady() - begun < 2
        assert ending(status) == INTERRUPTED
        assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["huge.error"]

    assert exporter.process.poll() is None
    assert TOKEN not in exporter.log.read_text()


def test_of_a_start_and_many_cancellations_the_history_stays_true(unit: Unit, exporter: HandExporter) -> None:
    with Oracle(unit):
        for number in range(10):
            unit.begin(f"round-{number}")
            outcomes: list[str] = []

            def cancel(outcomes: list[str] = outcomes) -> None:
                try:
                    outcomes.append(CellExport.State.Name(unit.cancel().state))
                except grpc.RpcError as error:
                    outcomes.append(error.code().name)

            threads = [threading.Thread(target=cancel) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(outcomes) <= {"STATE_READY", "STATE_EXPORTING", "FAILED_PRECONDITION"}
            status = unit.wait_until_ready()
            assert (status.last_outcome.name, *ending(status)) == (f"round-{number}", *INTERRUPTED)


def test_an_export_that_reports_and_does_not_move_is_stalled_until_it_does(unit: Unit) -> None:
    unit.lease_seconds = 1.0
    unit.start_server()
    unit.start_gateway()

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        unit.begin("stuck")
        claimed = exporter.must_claim()
        sequence = 0
        begun, begun_steady = time.monotonic(), steady()

        while not unit.get().exportation.stalled:
            assert steady() - begun_steady < 4 * unit.lease_seconds + 2
            sequence += 1
            exporter.report(claimed, sequence, 40)
            threading.Event().wait(0.2)
        assert time.monotonic() - begun > 4 * unit.lease_seconds - 0.5
        assert set(unit.status()) == {"status", "started_at", "progress", "exportation_name"}
        exporter.report(claimed, sequence + 1, 40)
        assert unit.get().exportation.stalled
        exporter.report(claimed, sequence + 2, 41)

        assert not unit.get().exportation.stalled


def test_a_stalled_mark_renews_no_lease(unit: Unit) -> None:
    unit.lease_seconds = 1.0
    unit.start_server()

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        unit.begin("dies")
        claimed = exporter.must_claim()
        last = steady()
        sequence = 0

        while not unit.get().exportation.stalled:
            sequence += 1
            last = steady()
            exporter.report(claimed, sequence, 40)
            threading.Event().wait(0.1)
        unit.wait_until_ready(within=3)

        assert steady() - last < unit.lease_seconds + 1
