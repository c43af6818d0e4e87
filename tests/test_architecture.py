"""The walls between the rooms (folders of this project): which may import which. New files are checked too."""

import ast
import sys
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
from server.rpc.refusal_table import STATUS
from unit import ROOT

PROGRAMS = {"server", "gateway"}
# The rules and the names of refusals import the standard library, without SQL and networks, and no other library.
PURE = ("server/exports", "server/refusals.py")
NOT_PURE = {"sqlite3", "socket", "ssl", "http", "urllib", "asyncio.streams", "subprocess"}
# Ways to import without an import statement, which this test could not see.
HIDDEN = {"__import__", "import_module", "exec", "eval"}

# Each room, and the packages of this project that it may import besides itself. A package includes its subpackages.
ROOMS = {
    "proto/cellexport": {"cellexport"},
    "gateway": {"cellexport"},
    "server/exporter": {"cellexport"},
    "server/exports": {"cellexport.outcomes", "cellexport.request_key", "server.refusals"},
    "server/auth": {"cellexport", "server.exports.model", "server.cells", "server.refusals"},
    "server/stores": {"cellexport", "server.exports", "server.refusals", "server.tasks"},
    "server/rpc": {"cellexport", "server.exports", "server.auth", "server.cells", "server.refusals"},
    "server/ops": {"cellexport", "server.exports", "server.rpc", "server.refusals", "server.tasks"},
    # The files of the server that each room may import, and the root that knows all rooms.
    "server/refusals.py": set(),
    "server/tasks.py": set(),
    "server/cells.py": {"cellexport", "server.refusals"},
    "server": {"cellexport", "server"},
}
ROOM_PACKAGES = {room.replace("/", ".") for room in ROOMS if room.startswith("server/") and not room.endswith(".py")}


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of each module or name that a file imports, lazy imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def files(folder: str, root: Path) -> list[Path]:
    path = root / folder
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def trespasses(folder: str, root: Path) -> list[str]:
    """Return each forbidden import of a room, as `file: name`."""
    allowed = ROOMS[folder] | {folder.removeprefix("proto/").replace("/", ".")}
    ours = {*PROGRAMS, "cellexport", "tests"}
    return [
        f"{path.relative_to(root)}: {name}"
        for path in files(folder, root)
        for name in (*imports(path), *hidden_imports(path))
        if (inside(name, ours) and not inside(name, allowed))
        or name in HIDDEN
        or (folder in PURE and not inside(name, ours) and not is_pure(name))
    ]


def hidden_imports(path: Path) -> Iterator[str]:
    """Yield the name of each call that imports without an import statement."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in HIDDEN:
                yield name


def is_pure(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names and not inside(name, NOT_PURE)


@pytest.mark.parametrize("folder", ROOMS)
def test_a_room_imports_only_what_its_wall_allows(folder: str) -> None:
    assert (ROOT / folder).exists()
    assert trespasses(folder, ROOT) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("server/exports", "import grpc"),
        ("server/exports", "from google.protobuf import message"),
        ("server/exports", "def f() -> None:\n    import sqlite3"),
        ("server/exports", "from cellexport.v1 import cell_export_pb2"),
        ("server/exports", "from server.rpc import abort"),
        ("server/exports", "from server import cells"),
        ("server/stores", "from server.rpc.guard import Guard"),
        ("server/auth", "from server.exports.lifecycle import ExportLifecycle"),
        ("server/rpc", "from server.stores.sqlite.store import SqliteStore"),
        ("server/rpc", "from server.ops import health"),
        ("server/ops", "from server.auth import Judge"),
        ("server/exporter", "from server.exports.model import Reason"),
        ("gateway", "from server.refusals import Refusal"),
        ("proto/cellexport", "import server"),
        ("server/exports", "import opentelemetry.trace"),
        ("server/exports", "from asyncio import streams"),
        ("server/auth", "import importlib\n\nimportlib.import_module(name)"),
        ("server/rpc", "__import__(name)"),
        ("server", "import gateway.errors"),
    ],
)
def test_a_forbidden_import_in_a_new_file_is_found(folder: str, line: str, tmp_path: Path) -> None:
    new = tmp_path / folder / "below" / "new.py"
    new.parent.mkdir(parents=True)
    new.write_text(f"{line}\n")
    assert len(trespasses(folder, tmp_path)) == 1


@pytest.mark.parametrize("line", ["import grpc", "from cellexport.v1 import error_reason_pb2", "import server.cells"])
def test_the_names_of_refusals_know_no_library_and_no_room(line: str, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/refusals.py").write_text(f"{line}\n")
    assert len(trespasses("server/refusals.py", tmp_path)) == 1


def test_every_folder_of_the_server_is_a_room() -> None:
    folders = {f"server/{path.relative_to(ROOT / 'server').parts[0]}" for path in (ROOT / "server").glob("*/**/*.py")}
    assert folders == {room for room in ROOMS if room.startswith("server/") and not room.endswith(".py")}


def test_callers_need_nothing_that_only_the_programs_share() -> None:
    package = ROOT / "proto/cellexport"
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("program", "store"):
            continue
        assert not {name for name in imports(path) if inside(name, {"cellexport.program", "cellexport.store"})}, path


@pytest.mark.parametrize("folder", [room for room in (*ROOMS, "proto/cellexport/program") if not room.endswith(".py")])
def test_each_room_says_what_lives_there_in_at_most_ten_lines(folder: str) -> None:
    for path in [ROOT / folder / "__init__.py", *(ROOT / folder).glob("*/__init__.py")]:
        if "v1" in path.parts or "store" in path.parts:
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert 0 < len(text.splitlines()) <= 10, path


def test_only_the_composition_root_and_the_commands_know_every_room() -> None:
    roots = {"server.__main__", "server.wiring", "server.settings", "server.token_command"}
    for path in (ROOT / "server").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        forbidden = roots | ROOM_PACKAGES if path.parent.name == "server" else roots
        if name not in roots:
            assert not {imported for imported in imports(path) if inside(imported, forbidden)}, path


def test_a_method_without_a_privilege_keeps_the_server_from_starting() -> None:
    judge = Judge([], cookies=None, clock=int)
    guard = Guard(Admission(judge=judge, cells=CellDirectory(Path("nowhere"))), CallsInFlight(), int)
    for file, name in ((cell_export_pb2, "CellExportService"), (exporter_pb2, "ExporterService")):
        service = file.DESCRIPTOR.services_by_name[name]
        with pytest.raises(ValueError, match="each method needs a privilege"):
            guard.handlers(service, {})


def test_every_refusal_is_a_reason_of_the_contract_and_the_other_way_round() -> None:
    assert {refusal.name for refusal in Refusal} == set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def test_every_refusal_has_a_status() -> None:
    assert STATUS.keys() == set(Refusal)
