"""Leases: an exporter's rights and limits, over the real service."""

import os
import sqlite3
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from cellexport.v1.exporter_pb2 import ClaimedExport, ClaimExportRequest, Progress, ReportProgressRequest
from oracle import unchanged
from unit import OWNER, UNIT_URL, HandExporter, Unit, answered, eventually, refused


@pytest.fixture
def exporter(unit: Unit) -> Iterator[HandExporter]:
    unit.start_server()
    with unit.channel() as channel:
        yield HandExporter(channel)


def test_a_claim_says_all_that_an_exporter_needs(unit: Unit, exporter: HandExporter) -> None:
    started = unit.begin("first")
    claimed = exporter.must_claim()
    assert (claimed.cell, claimed.name) == ("demo", "first")
    assert (claimed.owner, claimed.unit_url) == (OWNER, UNIT_URL)
    assert claimed.start_time == started.exportation.start_time
    assert claimed.lease_duration.seconds == unit.lease_seconds
    assert claimed.request_key


def test_a_waiting_claim_is_given_an_export_as_soon_as_it_is_accepted(unit: Unit, exporter: HandExporter) -> None:
    claims: list[ClaimedExport | None] = []
    waiting = threading.Thread(target=lambda: claims.append(exporter.claim(wait=20)))
    waiting.start()
    unit.begin()
    waiting.join(10)
    assert claims
    assert claims[0] is not None


def test_exports_are_given_in_the_order_of_their_acceptance_and_each_once(unit: Unit, exporter: HandExporter) -> None:
    for cell in ("zebra", "ant", "mule"):
        unit.add_cell(cell)
        unit.begin(cell=cell)
    assert [exporter.must_claim().cell for _ in range(3)] == ["zebra", "ant", "mule"]
    assert exporter.claim(wait=0) is None


def test_a_claim_repeated_after_a_lost_answer_gives_the_same_export(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    lost = exporter.claim(request_id="0123456789abcdef")
    again = exporter.claim(request_id="0123456789abcdef")
    assert lost is not None
    assert again is not None
    assert (again.lease.export_id, again.lease.epoch) == (lost.lease.export_id, lost.lease.epoch)
    exporter.report(again, 1, 1)


def test_a_claim_whose_caller_has_gone_is_given_to_the_next(unit: Unit, exporter: HandExporter) -> None:
    request = ClaimExportRequest(request_id="0123456789abcdef", wait=Duration(seconds=30))
    waiting = exporter.stub.ClaimExport.future(request, metadata=exporter.metadata, timeout=60)
    assert exporter.claim(wait=0) is None
    waiting.cancel()
    unit.begin()
    assert exporter.claim() is not None


def test_an_unstarted_claim_can_be_given_back(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("one")
    claimed = exporter.claim(request_id="0123456789abcdef")
    assert claimed is not None
    with unchanged(unit):
        exporter.give_back("fedcba9876543210")

    exporter.give_back("0123456789abcdef")
    with pytest.raises(grpc.RpcError) as lost:
        exporter.report(claimed, 1, 1)
    assert refused(lost) == ("ABORTED", "LEASE_LOST")

    again = exporter.claim(request_id="0123456789abcdef")
    assert again is not None
    assert again.lease.export_id == claimed.lease.export_id
    assert again.lease.epoch > claimed.lease.epoch

    exporter.report(again, 1, 1)
    with unchanged(unit):
        exporter.give_back("0123456789abcdef")

    # To give the same claim back once more must not take the other cell's export either.
    unit.add_cell("other")
    unit.begin(cell="other")
    exporter.give_back("0123456789abcdef")
    assert exporter.must_claim().cell == "other"


def test_giving_back_a_claim_leaves_another_claim_alone(unit: Unit, exporter: HandExporter) -> None:
    unit.add_cell("younger")
    for cell in ("demo", "younger"):
        unit.begin(cell=cell)
    exporter.claim(request_id="0123456789abcdef")
    lost = exporter.claim(request_id="fedcba9876543210")

    exporter.give_back("0123456789abcdef")

    assert lost is not None

    again = exporter.claim(request_id="fedcba9876543210")
    assert again is not None
    assert again.lease.export_id == lost.lease.export_id
    assert exporter.must_claim().cell == "demo"


def test_a_cancelled_export_that_is_given_back_is_over(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    exporter.claim(request_id="0123456789abcdef")
    unit.cancel()
    exporter.give_back("0123456789abcdef")
    assert unit.wait_until_ready(within=1.9).last_outcome.reason == Outcome.REASON_CANCELLED
    assert exporter.claim(wait=0) is None


@pytest.mark.timeout(120)
def test_an_exporter_that_ends_just_as_it_is_given_an_export_keeps_it_from_nobody(
    unit: Unit, exporter: HandExporter
) -> None:
    for moment in range(12):
        bundled = unit.start_exporter()
        eventually(lambda: exporter.claim(wait=0) is None)
        unit.begin()
        time.sleep(moment / 4000)  # each round tries another moment
        assert bundled.terminate() == 0
        if unit.get().state == CellExport.STATE_EXPORTING:
            claimed = exporter.claim(wait=0)
            assert claimed is not None
            exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_INTERNAL)


@pytest.mark.fault("F55")
def test_progress_is_whole_percent_never_falls_and_is_at_most_99(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    seen = []
    reports = [(1, 0, 0), (2, 1, 3), (3, 999, 1000), (4, 1, 2), (5, 5, 1000), (6, 7, 7)]
    for sequence, done, total in reports:
        exporter.report(claimed, sequence, done, total)
        seen.append(unit.get().exportation.progress_percent)
    assert seen == [0, 33, 99, 99, 99, 99]


@pytest.mark.fault("F55")
def test_an_old_report_changes_nothing(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    exporter.report(claimed, 5, 50)
    before = unit.get()
    exporter.report(claimed, 5, 60)
    exporter.report(claimed, 4, 70)
    assert unit.get() == before


@pytest.mark.fault("F55")
@pytest.mark.parametrize(
    ("sequence", "done", "total"), [(0, 1, 2), (-1, 1, 2), (1, -1, 2), (1, 3, 2), (1, 1, -1), (1, 1, 2**61)]
)
def test_a_report_that_cannot_be_true_is_refused_and_changes_nothing(
    unit: Unit, exporter: HandExporter, sequence: int, done: int, total: int
) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    before = unit.get()
    with pytest.raises(grpc.RpcError) as error:
        exporter.report(claimed, sequence, done, total)
    assert refused(error) == ("INVALID_ARGUMENT", "PROGRESS_INVALID")
    assert unit.get() == before


@pytest.mark.fault("F55")
@pytest.mark.parametrize(
    "numbers",
    [{"entries_done": -1}, {"entries_done": 3, "entries_total": 2}, {"bytes_done": 3, "bytes_total": 2}],
    ids=["below 0", "more entries than there are", "more bytes than there are"],
)
def test_no_number_of_a_report_may_be_impossible(unit: Unit, exporter: HandExporter, numbers: dict[str, int]) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    exporter.report(claimed, 1, 40)
    progress = Progress(work_done=50, work_total=100, **numbers)
    request = ReportProgressRequest(cell="demo", lease=claimed.lease, sequence=2, progress=progress)
    with unchanged(unit), pytest.raises(grpc.RpcError) as error:
        exporter.stub.ReportProgress(request, metadata=exporter.metadata, timeout=60)
    assert refused(error) == ("INVALID_ARGUMENT", "PROGRESS_INVALID")


def test_only_the_lease_that_was_given_counts(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    unit.add_cell("other")
    claimed = exporter.must_claim()
    before = unit.get()

    def refusal(cell: str = "demo", **changed: str | int) -> tuple[str, str]:
        forged = ClaimedExport(cell=cell)
        forged.lease.CopyFrom(claimed.lease)
        for field, value in changed.items():
            setattr(forged.lease, field, value)
        with pytest.raises(grpc.RpcError) as error:
            exporter.report(forged, 1, 50)
        return refused(error)

    assert refusal(token="guessed") == ("PERMISSION_DENIED", "LEASE_NOT_HELD")
    assert refusal(epoch=claimed.lease.epoch + 1) == ("ABORTED", "LEASE_LOST")
    assert refusal(export_id="another") == ("NOT_FOUND", "EXPORT_NOT_FOUND")
    assert refusal(cell="other") == ("NOT_FOUND", "EXPORT_NOT_FOUND")
    assert refusal(cell="unknown") == ("NOT_FOUND", "EXPORT_NOT_FOUND")
    assert refusal(cell="../demo") == ("NOT_FOUND", "CELL_NOT_FOUND")
    assert unit.get() == before


def test_without_the_units_token_nobody_claims(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    with unit.channel() as channel, pytest.raises(grpc.RpcError) as error:
        HandExporter(channel, token="guessed").claim()
    assert refused(error) == ("UNAUTHENTICATED", "TOKEN_INVALID")


def test_an_end_may_be_reported_twice_but_not_changed(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("one")
    claimed = exporter.must_claim()

    ended = exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_NO_SPACE)
    assert (ended.state, ended.last_outcome.reason) == (CellExport.STATE_READY, Outcome.REASON_NO_SPACE)
    assert exporter.finish(claimed, Outcome.RESULT_FAILED, Outcome.REASON_NO_SPACE) == ended

    with pytest.raises(grpc.RpcError) as error:
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
    assert refused(error) == ("ABORTED", "LEASE_LOST")
    with pytest.raises(grpc.RpcError) as error:
        exporter.report(claimed, 9, 1)
    assert refused(error) == ("ABORTED", "LEASE_LOST")

    assert unit.get() == ended


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Outcome.RESULT_UNSPECIFIED, Outcome.REASON_UNSPECIFIED),
        (Outcome.RESULT_SUCCEEDED, Outcome.REASON_INTERNAL),
        (Outcome.RESULT_FAILED, Outcome.REASON_UNSPECIFIED),
        (Outcome.RESULT_FAILED, Outcome.REASON_SHUTDOWN),
        (Outcome.RESULT_INTERRUPTED, Outcome.REASON_NO_SPACE),
    ],
)
def test_a_result_and_a_reason_must_go_together(
    unit: Unit,
    exporter: HandExporter,
    result: Outcome.Result.ValueType,
    reason: Outcome.Reason.ValueType,
) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    with pytest.raises(grpc.RpcError) as error:
        exporter.finish(claimed, result, reason)
    assert refused(error) == ("INVALID_ARGUMENT", "OUTCOME_INVALID")
    assert unit.get().state == CellExport.STATE_EXPORTING


@pytest.mark.fault("F53")
def test_an_exporter_that_is_silent_for_its_lease_has_lost_it(unit: Unit, exporter: HandExporter) -> None:
    unit.begin("silent")
    claimed = exporter.must_claim()
    exporter.report(claimed, 1, 40)

    status = unit.wait_until_ready(within=unit.lease_seconds + 1.5)
    assert (status.last_outcome.result, status.last_outcome.reason) == (
        Outcome.RESULT_INTERRUPTED,
        Outcome.REASON_LEASE_EXPIRED,
    )

    note = (unit.snapshots / "demo" / "silent.error").read_text()
    assert note == (
        '{"code":"PR500-CX-0001","message":{"lang":"en","value":"Cell export was interrupted. [LEASE_EXPIRED]"}}'
    )
    line = unit.programs[0].wait_for_log("export ended by the server")
    assert (line["result"], line["reason"]) == ("INTERRUPTED", "LEASE_EXPIRED")

    with pytest.raises(grpc.RpcError) as error:
        exporter.report(claimed, 2, 50)
    assert refused(error) == ("ABORTED", "LEASE_LOST")
    assert unit.get() == status

    unit.begin("silent")
    assert exporter.must_claim().lease.epoch > claimed.lease.epoch


def test_reports_keep_a_lease_alive_though_nothing_moves(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    pause = threading.Event()
    for sequence in range(1, 10):
        exporter.report(claimed, sequence, 40)
        pause.wait(unit.lease_seconds / 4)
    assert unit.get().exportation.progress_percent == 40


def test_an_export_that_no_exporter_takes_is_interrupted(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_QUEUE_SECONDS="1")
    unit.begin("alone")
    status = unit.wait_until_ready(within=3)
    assert status.last_outcome.reason == Outcome.REASON_QUEUE_TIMEOUT
    assert b"QUEUE_TIMEOUT" in (unit.snapshots / "demo" / "alone.error").read_bytes()


def test_a_queued_export_survives_the_death_of_the_server(unit: Unit) -> None:
    server = unit.start_server()
    started = unit.begin("kept")
    server.kill()
    unit.start_server()
    assert unit.get() == started
    with unit.channel() as channel:
        assert HandExporter(channel).must_claim().name == "kept"


def test_acknowledged_progress_survives_a_killed_server_and_the_lease_begins_again(
    unit: Unit, exporter: HandExporter
) -> None:
    unit.begin()
    claimed = exporter.must_claim()
    exporter.report(claimed, 1, 64)
    before = unit.get()
    unit.programs[0].kill()
    unit.start_server()
    # Call until the server answers: gRPC channels of one process share connections, and after a failed connect gRPC
    # waits before it tries again.
    eventually(lambda: answered(unit.get))
    assert unit.get() == before

    eventually(lambda: answered(exporter.report, claimed, 2, 65), within=unit.lease_seconds)
    assert unit.get().exportation.progress_percent == 65


def odd_compression(path: Path) -> None:
    deep_manifest(path)
    content = bytearray(path.read_bytes())
    # Set the unknown compression method 99 in the entry's record, in the directory at the zip's end.
    content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)


def deep_manifest(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as odd:
        odd.writestr("00_manifest.json", "[" * 60_000)


@pytest.mark.parametrize(
    "make",
    [
        odd_compression,
        deep_manifest,
        os.mkfifo,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"PK"),
        lambda path: path.symlink_to(path),
    ],
    ids=["compression", "deep", "pipe", "directory", "text", "loop"],
)
def test_an_export_ends_whatever_lies_at_its_snapshots_path(
    unit: Unit, exporter: HandExporter, make: Callable[[Path], object]
) -> None:
    unit.add_cell("other")
    unit.begin("odd")
    unit.begin(cell="other")
    exporter.must_claim()
    exporter.must_claim()
    (unit.snapshots / "demo").mkdir(parents=True)
    make(unit.snapshots / "demo" / "odd.zip")
    assert unit.wait_until_ready(within=4).last_outcome.reason == Outcome.REASON_LEASE_EXPIRED
    unit.wait_until_ready("other", within=1)


def test_an_export_ends_though_there_is_no_place_for_snapshots(unit: Unit) -> None:
    unit.snapshots.write_bytes(b"a file")
    unit.start_server(CELLEXPORT_QUEUE_SECONDS="1")
    unit.begin()
    assert unit.wait_until_ready(within=3).last_outcome.reason == Outcome.REASON_QUEUE_TIMEOUT


@pytest.mark.fault("F41")
def test_a_store_that_refuses_reports_costs_no_living_exporter_its_lease(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    claimed = exporter.must_claim()

    other = sqlite3.connect(unit.directory / "export.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    locked = time.monotonic()
    sequence = 1
    while time.monotonic() - locked < unit.lease_seconds + 0.5:
        sequence += 1
        assert not answered(exporter.report, claimed, sequence, sequence)

    other.close()
    threading.Event().wait(0.3)
    exporter.report(claimed, sequence + 1, 50)

    assert unit.get().exportation.progress_percent == 50


def test_a_living_export_outlasts_a_damaged_access_file(unit: Unit, exporter: HandExporter) -> None:
    unit.begin()
    claimed = exporter.must_claim()

    access = unit.directory / "cells" / "demo" / "cell.toml"
    kept = access.read_bytes()
    access.write_bytes(b"owner = " + b"[" * 100_000)
    exporter.report(claimed, 1, 1)

    with pytest.raises(grpc.RpcError) as error:
        unit.get()
    assert refused(error) == ("DATA_LOSS", "DATA_DAMAGED")

    exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
    access.write_bytes(kept)
    assert unit.get().state == CellExport.STATE_READY


def test_a_message_that_is_none_shows_nothing_of_our_insides(unit: Unit, exporter: HandExporter) -> None:
    with unit.channel() as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/cellexport.v1.CellExportService/GetCellExport"
        )
        for message in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"):
            with pytest.raises(grpc.RpcError) as error:
                call(message, metadata=exporter.metadata, timeout=60)
            assert (error.value.code().name, error.value.details()) == ("INTERNAL", "Exception deserializing request!")
    assert "Traceback" not in unit.programs[0].log.read_text()


def test_an_exporter_whose_token_is_refused_in_the_middle_ends(unit: Unit) -> None:
    unit.add_large_file(50 * 1024)
    server = unit.start_server()
    exporter = unit.start_exporter()
    unit.begin()
    eventually(lambda: unit.get().exportation.bytes_done > 0)
    server.kill()
    unit.start_server(CELLEXPORT_MASTER_TOKEN="changed")
    assert exporter.process.wait(60) == 2
