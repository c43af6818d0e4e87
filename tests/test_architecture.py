"""Which part knows which, and that no method is without a rule."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellexport.v1 import cell_export_pb2, exporter_pb2
from cellexport.v1.error_reason_pb2 import ErrorReason
from server.auth import Judge
from server.cells import CellDirectory
from server.refusals import Refusal
from server.rpc.admission import Admission
from server.rpc.guard import Guard
from server.rpc.in_flight import CallsInFlight
from unit import ROOT


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_below(directory: str) -> set[str]:
    return {name for path in (ROOT / directory).rglob("*.py") for name in imports(path)}


def inside(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def test_the_gateway_knows_nothing_of_the_server() -> None:
    assert not inside(imported_below("gateway"), "server")


def test_the_exporter_knows_nothing_of_the_server_but_itself() -> None:
    names = imported_below("server/exporter")
    assert inside(names, "server") == inside(names, "server.exporter")
    assert not inside(names, "gateway")


def test_the_server_knows_nothing_of_the_gateway() -> None:
    assert not inside(imported_below("server"), "gateway")


def test_what_is_shared_knows_nothing_of_the_programs() -> None:
    names = imported_below("proto/cellexport")
    assert not inside(names, "server") | inside(names, "gateway")


def test_the_rules_know_neither_messages_nor_sql() -> None:
    for module in ("registry", "claims", "records", "steps", "model", "leases", "events", "watches"):
        names = set(imports(ROOT / "server" / f"{module}.py"))
        assert (
            not inside(names, "cellexport")
            | inside(names, "sqlite3")
            | inside(names, "redis")
            | inside(names, "google")
        )
        assert not {name for name in names if name.startswith("server.stores.")} - {
            "server.stores.Store",
            "server.stores.QUEUE",
        }


def test_a_method_without_a_privilege_keeps_the_server_from_starting() -> None:
    judge = Judge([], cookies=None, clock=int)
    guard = Guard(Admission(judge=judge, cells=CellDirectory(Path("nowhere"))), CallsInFlight())
    for file, name in ((cell_export_pb2, "CellExportService"), (exporter_pb2, "ExporterService")):
        service = file.DESCRIPTOR.services_by_name[name]
        with pytest.raises(ValueError, match="each method needs a privilege"):
            guard.handlers(service, {})


def test_every_refusal_is_a_reason_of_the_contract_and_the_other_way_round() -> None:
    assert {refusal.name for refusal in Refusal} == set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
