"""BatchGetCellExports: one call returns the status or the refusal of each of many cells."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from cellexport.client import bearer
from cellexport.v1.cell_export_pb2 import BatchGetCellExportsRequest, CellExportEntry, GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from tokens import ACCESS_FILE, SECRET, resident
from unit import TOKEN, Unit, eventually, refused


def batch(unit: Unit, cells: Sequence[str], *, token: str | None = TOKEN, key: str = "") -> Sequence[CellExportEntry]:
    metadata = (*(bearer(token) if token else ()), ("x-personium-requestkey", key))
    with unit.channel() as channel:
        call = CellExportServiceStub(channel).BatchGetCellExports
        return call(BatchGetCellExportsRequest(cells=cells), metadata=metadata, timeout=60).entries


def outcomes(entries: Sequence[CellExportEntry]) -> list[str]:
    return [entry.refusal.reason or entry.cell_export.cell for entry in entries]


def test_each_cell_has_its_own_outcome_in_the_order_asked_for(unit: Unit) -> None:
    unit.start_server()
    unit.add_cell("other")
    unit.add_cell("damaged")
    (unit.directory / "cells/damaged/cell.toml").write_text("owner =")

    started = unit.begin("one", cell="other")
    cells = ["other", "nowhere", "demo", "", "../demo", "damaged", "other"]
    entries = batch(unit, cells)
    assert [entry.cell for entry in entries] == cells
    assert outcomes(entries) == [
        "other",
        "CELL_NOT_FOUND",
        "demo",
        "CELL_NOT_FOUND",
        "CELL_NOT_FOUND",
        "DATA_DAMAGED",
        "other",
    ]
    assert entries[0].cell_export == started
    assert entries[2].cell_export == unit.get()
    refusal = entries[1].refusal
    assert refusal.status_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert (refusal.personium_code, refusal.message, refusal.retryable) == ("PR404-DV-0003", "Cell not found.", False)


def test_a_caller_sees_in_a_batch_just_what_it_sees_one_by_one(unit: Unit) -> None:
    for cell in ("demo", "other"):
        if cell == "other":
            unit.add_cell(cell)
        (unit.directory / f"cells/{cell}/cell.toml").write_text(ACCESS_FILE)
    unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET)
    assert outcomes(batch(unit, ["demo", "other"], token=resident())) == ["demo", "TOKEN_INVALID"]
    assert outcomes(batch(unit, ["demo"], token=resident("staff"))) == ["PRIVILEGE_LACKING"]
    assert outcomes(batch(unit, ["demo", "nowhere"], token=None)) == ["CREDENTIALS_MISSING", "CELL_NOT_FOUND"]


def test_as_many_cells_as_may_be_and_no_more(shared_unit: Unit) -> None:
    assert outcomes(batch(shared_unit, ["demo"] * 250)) == ["demo"] * 250
    assert list(batch(shared_unit, [])) == []
    with pytest.raises(grpc.RpcError) as raised:
        batch(shared_unit, ["demo"] * 251)
    assert refused(raised) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE")


def test_an_error_of_the_call_itself_is_returned_once(shared_unit: Unit) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        batch(shared_unit, ["demo"], key="a b")
    assert refused(raised) == ("INVALID_ARGUMENT", "REQUEST_KEY_INVALID")


def test_each_status_given_is_an_event(unit: Unit) -> None:
    unit.start_server()
    unit.add_cell("other")
    batch(unit, ["demo", "nowhere", "other"], key="my-batch")
    log = unit.directory / "log" / "event.log"
    lines = eventually(lambda: [line for line in log.read_text().splitlines() if '"my-batch"' in line] or None)
    assert [line.split(",")[6] for line in lines] == ['"cell.export.status"'] * 2


def test_an_unavailable_store_is_a_retryable_refusal_for_each_cell(unit: Unit) -> None:
    unit.start_server()
    (unit.directory / "export.db").unlink()

    def unavailable() -> Sequence[CellExportEntry] | None:
        entries = batch(unit, ["demo", "demo"])
        return entries if outcomes(entries) == ["STORE_UNAVAILABLE"] * 2 else None

    assert all(entry.refusal.retryable for entry in eventually(unavailable))


@pytest.mark.fault("F25")
def test_a_flood_of_batches_leaves_other_calls_their_turn(unit: Unit) -> None:
    unit.start_server()
    request = BatchGetCellExportsRequest(cells=["demo"] * 250)

    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{unit.grpc_port}") as channel:
            stub, metadata = CellExportServiceStub(channel), bearer(TOKEN)
            flood = {asyncio.ensure_future(stub.BatchGetCellExports(request, metadata=metadata)) for _ in range(200)}
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            await stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=metadata, timeout=60)
            answered = sum(call.done() for call in flood)
            assert 0 < answered < 100, answered
            for call in flood:
                call.cancel()

    asyncio.run(main())
