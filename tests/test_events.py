"""The event log: a CSV reader reads every event back, whatever its texts contain."""

import asyncio
import csv
import fcntl
import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from canary import steady
from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest, Outcome
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from server.exports.events import Event, Type
from server.exports.model import Caller
from server.ops.event_log import EventLog, format_line
from unit import TOKEN, HandExporter, Unit, eventually

COLUMNS = ["time", "level", "request_key", "external", "schema", "subject", "type", "object", "info"]


def events(unit: Unit) -> list[dict[str, str]]:
    text = (unit.directory / "log" / "event.log").read_text()
    return [dict(zip(COLUMNS, row, strict=True)) for row in csv.reader(text.splitlines())]


def logged(unit: Unit, type_: str, count: int = 1) -> list[dict[str, str]]:
    """Wait until the event log has `count` events of a type, and return them."""
    found: list[dict[str, str]] = []

    def enough() -> bool:
        found[:] = [event for event in events(unit) if event["type"] == type_]
        return len(found) >= count

    eventually(enough)
    assert len(found) == count
    return found


def test_each_returned_status_is_an_event_in_the_known_layout(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()

    unit.http(headers={"X-Personium-RequestKey": "my-key"})
    eventually(lambda: (unit.directory / "log" / "event.log").read_text() or None)

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z,\[INFO \],"
        r'"my-key","false",null,null,"cell\.export\.status","personium-localcell:/__export","ready"\n',
        (unit.directory / "log" / "event.log").read_text(),
    )


def test_an_export_is_logged_from_its_start_to_its_end(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    unit.http("POST", body=b'{"Name":"one"}', headers={"X-Personium-RequestKey": "the-start"})

    with unit.channel() as channel:
        exporter = HandExporter(channel)
        claimed = exporter.must_claim()
        assert claimed.request_key == "the-start"
        exporter.report(claimed, 1, 42)
        unit.http("HEAD", headers={"X-Personium-RequestKey": "a-status"})
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
        exporter.finish(claimed, Outcome.RESULT_SUCCEEDED)
        unit.http("POST", body=b'{"Name":"two"}', headers={"X-Personium-RequestKey": "a-second"})
        exporter.finish(exporter.must_claim(), Outcome.RESULT_FAILED, Outcome.REASON_NO_SPACE)
    [start, _] = logged(unit, "cell.export.start", 2)
    assert (start["request_key"], start["info"], start["level"]) == ("the-start", "one", "[INFO ]")
    [status] = logged(unit, "cell.export.status")
    assert (status["request_key"], status["info"]) == ("a-status", "exportation in progress 42% one")
    [end] = logged(unit, "cell.export")
    assert (end["request_key"], end["info"], end["level"]) == ("the-start", "one", "[INFO ]")
    [failed] = logged(unit, "cell.export.failed")
    assert (failed["request_key"], failed["info"], failed["level"]) == ("a-second", "two NO_SPACE", "[ERROR]")


def test_an_export_that_the_server_ends_is_logged_too(unit: Unit) -> None:
    unit.start_server(CELLEXPORT_QUEUE_SECONDS="1")
    key = unit.begin("alone")
    assert key
    [failed] = logged(unit, "cell.export.failed")
    [start] = logged(unit, "cell.export.start")
    assert (failed["info"], failed["level"]) == ("alone QUEUE_TIMEOUT", "[WARN ]")
    assert failed["request_key"] == start["request_key"]


def test_refused_requests_are_not_in_it(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway()
    unit.http(token="wrong")
    unit.http(path="/unknown/__export")
    unit.http("POST", body=b"{")
    unit.http()
    assert len(logged(unit, "cell.export.status")) == len(events(unit)) == 1


def test_a_call_over_grpc_is_logged_with_its_own_key(unit: Unit) -> None:
    unit.start_server()
    with unit.channel() as channel:
        metadata = (*client.bearer(TOKEN), ("x-personium-requestkey", "over-grpc"))
        CellExportServiceStub(channel).GetCellExport(GetCellExportRequest(cell="demo"), metadata=metadata, timeout=60)
    assert logged(unit, "cell.export.status")[0]["request_key"] == "over-grpc"


def test_it_can_be_turned_off_or_be_elsewhere(unit: Unit, tmp_path: Path) -> None:
    server = unit.start_server(CELLEXPORT_EVENT_LOG="off")
    unit.get()
    assert server.terminate() == 0
    assert not (unit.directory / "log").exists()
    unit.start_server(CELLEXPORT_EVENT_LOG=str(tmp_path / "deep" / "events"))
    unit.get()
    eventually(lambda: (tmp_path / "deep" / "events").read_text() or None)


def test_events_before_the_shutdown_are_written(unit: Unit) -> None:
    server = unit.start_server()
    for _ in range(50):
        unit.get()
    assert server.terminate() == 0
    assert len(events(unit)) == 50


texts = st.text(max_size=60)


@given(texts, st.none() | texts, st.none() | texts, texts)
def test_one_event_is_one_line_whatever_its_texts(key: str, schema: str | None, subject: str | None, info: str) -> None:
    caller = Caller(schema=schema, subject=subject)
    line = format_line(Event(time=1486976400000, request_key=key, caller=caller, type=Type.STATUS, info=info))
    line.encode()
    assert len(line.splitlines()) == 1
    [row] = csv.reader([line])
    assert len(row) == len(COLUMNS)
    assert row[0] == "2017-02-13T09:00:00.000Z"

    for given_text, read in ((key, row[2]), (schema, row[4]), (subject, row[5]), (info, row[8])):
        if given_text is not None and given_text.isprintable():
            assert read == given_text
        if given_text is None:
            assert read == "null"


def an_event(number: int) -> Event:
    return Event(time=number, request_key=f"{number}", caller=Caller(), type=Type.STATUS, info="x" * 60)


def test_a_full_queue_makes_callers_wait_and_drops_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "events"
    os.mkfifo(pipe)

    async def main() -> int:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        log = await EventLog.open(pipe)
        written = 0
        try:
            # The event log is a pipe that nobody reads, so `write` has to wait as soon as pipe and queue are full.
            async with asyncio.timeout(2):
                while True:
                    await log.write(an_event(written))
                    written += 1
        except TimeoutError:
            pass
        assert written < 50_000
        os.set_blocking(reader, True)
        closing = asyncio.create_task(log.close())
        text = b""
        while text.count(b"\n") < written:
            text += await asyncio.to_thread(os.read, reader, 65536)
        await closing
        os.close(reader)
        numbers = [int(row[2]) for row in csv.reader(text.decode().splitlines())]
        assert numbers == list(range(len(numbers)))
        return len(numbers) - written

    assert asyncio.run(main()) == 0


def write_one_by_one(path: Path, count: int) -> None:
    """Write `count` events to an event log whose files hold at most 1,500 bytes, and flush after each event."""

    async def main() -> None:
        log = await EventLog.open(path, most_bytes=1500)
        for number in range(count):
            await log.write(an_event(number))
            await log.flush()
        await log.close()

    asyncio.run(main())


def numbers_in(files: list[Path]) -> list[int]:
    return [int(row[2]) for file in files for row in csv.reader(file.read_text().splitlines())]


def test_it_is_rotated_by_size_and_twelve_are_kept(tmp_path: Path) -> None:
    write_one_by_one(tmp_path / "events", 200)
    kept = sorted(tmp_path.iterdir(), key=lambda file: int(file.suffix[1:] or 0), reverse=True)
    assert len(kept) == 13
    numbers = numbers_in(kept)
    assert numbers == list(range(numbers[0], 200))
    assert all(file.stat().st_size <= 1500 for file in kept)


def test_a_file_that_can_not_be_put_aside_grows_on(tmp_path: Path) -> None:
    path = tmp_path / "events"
    (tmp_path / "events.12" / "in the way").mkdir(parents=True)
    write_one_by_one(path, 150)
    kept = [tmp_path / f"events.{number}" for number in range(11, 0, -1)] + [path]
    assert numbers_in(kept) == list(range(150))
    assert path.stat().st_size > 3000


def test_a_removed_file_is_created_again(unit: Unit) -> None:
    unit.start_server()
    unit.get()
    logged(unit, "cell.export.status")
    (unit.directory / "log" / "event.log").unlink()
    unit.get()
    eventually((unit.directory / "log" / "event.log").exists)
    logged(unit, "cell.export.status")


def test_a_full_disk_is_logged_once_and_fails_no_request(unit: Unit) -> None:
    server = unit.start_server(CELLEXPORT_EVENT_LOG="/dev/full")
    for _ in range(20):
        unit.get()
    server.wait_for_log("event log not writable")
    unit.get()
    assert server.terminate() == 0
    assert len([line for line in server.lines() if line["level"] == "error"]) == 1
    assert "Traceback" not in server.log.read_text()


def test_a_pipe_that_nobody_reads_ends_calls_in_time(unit: Unit, tmp_path: Path) -> None:
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    unit.start_server(CELLEXPORT_EVENT_LOG=str(pipe))
    assert unit.get().cell == "demo"
    os.close(reader)
    assert unit.get().cell == "demo"


def test_a_pipe_that_nobody_empties_keeps_no_server_from_its_end(unit: Unit, tmp_path: Path) -> None:
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    server = unit.start_server(CELLEXPORT_EVENT_LOG=str(pipe))
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)

    for _ in range(50):
        assert unit.get().cell == "demo"
    begun = steady()
    assert server.terminate() == 1
    assert steady() - begun < 11
    assert server.lines()[-1]["message"] == "shutdown timed out with data unwritten; exiting now"
    os.close(reader)
