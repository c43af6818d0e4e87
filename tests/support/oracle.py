"""The oracle: it checks the invariants that must hold after any fault. It polls during the fault, and judges after it.

I1  a snapshot under its final name is complete
I2  a cell has at most one live export
I3  within one export progress never falls, and a cell's revision only rises
I4  an export whose exporter is dead ends within its lease and one second more
I5  an export that was reported as ended stays ended, and its end was reported with its own outcome
I6  no `.part` file is left once an exporter has started again, and the files of other cells are unchanged
I7  no secret is in a log, the database, an `.error` note, or on a command line
I8  threads, file descriptors and memory of each program are back at their level from before the fault
I9  a refused call has changed nothing (`unchanged`)
"""

import functools
import hashlib
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

import snapshots
from cellexport import client
from cellexport.v1.cell_export_pb2 import CellExport, GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import TOKEN, Program, Unit, eventually

_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Seen:
    """A status, with the times of its request and its response on the monotonic clock."""

    asked: float
    came: float
    status: CellExport


@dataclass(frozen=True, slots=True)
class _Use:
    """The threads, open files and resident memory (in bytes) that a program and its child processes use."""

    threads: int
    files: int
    memory: int


class Oracle:
    """A context around a fault. Leaving it without an error judges I1 to I8.

    Args:
        unit: a unit in which the programs to check are already running.
        cells: the cells of which the status is polled while the context is open.
        ports: the servers to poll; the unit's own if omitted.
        exporter: whether to start an exporter at the end, which sweeps the files that dead exporters have left.
        may_step_back: whether progress may fall, for example because the store has lost acknowledged writes.
    """

    def __init__(
        self,
        unit: Unit,
        *,
        cells: Sequence[str] = ("demo",),
        ports: Sequence[int] = (),
        exporter: bool = True,
        may_step_back: bool = False,
    ) -> None:
        self._unit = unit
        self._cells = cells
        self._ports = ports or (unit.grpc_port,)
        self._exporter = exporter
        self._may_step_back = may_step_back
        self._over = threading.Event()
        # The statuses that the oracle has polled, in order, by the server's port and the cell.
        self.history: dict[tuple[int, str], list[Seen]] = {}
        self._threads: list[threading.Thread] = []
        self._files: dict[str, str] = {}
        self._uses: dict[int, _Use] = {}
        self._errors: list[grpc.RpcError] = []

    def __enter__(self) -> Self:
        self._files = self._bystanders()
        self._uses = {program.process.pid: use(program) for program in self._living()}
        for port in self._ports:
            for cell in self._cells:
                self.history[port, cell] = []
                thread = threading.Thread(target=self._watch, args=(port, cell), daemon=True)
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        if kind is None:
            self.judge()

    def judge(self) -> None:
        """Check the invariants I1 to I8 (see the top of the file) now."""
        assert not self._errors, self._errors
        for key, answers in self.history.items():
            _judge_history(key, answers, may_step_back=self._may_step_back)
        self._judge_end_of_the_dead()
        self._judge_area()
        self._judge_secrets()
        self._judge_use()

    def _watch(self, port: int, cell: str) -> None:
        with client.channel(f"127.0.0.1:{port}") as channel:
            stub = CellExportServiceStub(channel)
            while not self._over.wait(_POLL_SECONDS):
                asked = time.monotonic()
                try:
                    answer = stub.GetCellExport(
                        GetCellExportRequest(cell=cell), metadata=client.bearer(TOKEN), timeout=3
                    )
                except grpc.RpcError as error:
                    if error.code() not in _AWAY:
                        self._errors.append(error)
                    continue
                self.history[port, cell].append(Seen(asked, time.monotonic(), answer.cell_export))

    def _living(self) -> list[Program]:
        return [program for program in self._unit.programs if program.process.poll() is None]

    def _judge_end_of_the_dead(self) -> None:
        """Judge I4, if no exporter is alive: claimed exports end; queued exports may wait."""
        if any(program.module == "server.exporter" for program in self._living()):
            return
        if not any(program.module == "server" for program in self._living()):
            return
        for cell in self._cells:
            eventually(functools.partial(self._is_free, cell), within=self._unit.lease_seconds + 1.5)

    def _is_free(self, cell: str) -> bool:
        parts = list((self._unit.snapshots / cell).glob("*.part"))
        return not parts or self._unit.get(cell).state == CellExport.STATE_READY

    def _judge_area(self) -> None:
        if self._exporter and any(program.module == "server" for program in self._living()):
            self._unit.start_exporter()
        root = self._unit.snapshots
        if not root.is_dir():
            return
        for path in root.glob("*/*.zip"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size > 100:
                snapshots.read(path)
        for directory in root.iterdir():
            if directory.is_dir():
                parts = list(directory.glob("*.part"))
                assert len(parts) <= 1, parts
        assert self._files == {path: digest for path, digest in self._bystanders().items() if path in self._files}

    def _bystanders(self) -> dict[str, str]:
        """Return the hashes of the files of all cells that are not polled, and of their snapshots."""
        found = {}
        for part in ("cells", "snapshots"):
            for path in (self._unit.directory / part).glob("*/**/*"):
                cell = path.relative_to(self._unit.directory / part).parts[0]
                if cell not in self._cells and path.is_file() and path.stat().st_size < 10 * 1024 * 1024:
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def _judge_secrets(self) -> None:
        secret = TOKEN.encode()
        places = [program.log for program in self._unit.programs]
        places += [path for path in self._unit.directory.glob("*.db*") if path.is_file()]
        places += list(self._unit.directory.glob("log/*")) + list(self._unit.snapshots.glob("*/*.error"))
        assert not [str(path) for path in places if secret in path.read_bytes()]
        for program in self._living():
            assert secret not in Path(f"/proc/{program.process.pid}/cmdline").read_bytes()

    def _judge_use(self) -> None:
        for program in self._living():
            before = self._uses.get(program.process.pid)
            if before is not None:
                eventually(functools.partial(_is_back, before, program), within=20)


@contextmanager
def unchanged(unit: Unit, cell: str = "demo") -> Iterator[None]:
    """Assert I9: the refused calls in this context leave every field of the cell's status unchanged."""
    before = unit.get(cell)
    yield
    assert unit.get(cell) == before


def use(program: Program) -> _Use:
    """Return the threads, open files and resident memory (in bytes) of a program and its child processes, added up."""
    pids = [program.process.pid, *_children(program.process.pid)]
    total = _Use(0, 0, 0)
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only the names are counted
        except OSError:
            continue
        numbers = dict(re.findall(r"^(Threads|VmRSS):\s+(\d+)", status, re.MULTILINE))
        memory = int(numbers.get("VmRSS", 0)) * 1024
        total = _Use(total.threads + int(numbers["Threads"]), total.files + files, total.memory + memory)
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_back(before: _Use, program: Program) -> bool:
    """Return whether a program uses at most 10 % more resources than before the fault, plus an allowance.

    The allowance is for resources that a program takes once, when it is first used, and then keeps: pools, caches,
    connections. A server's pool of connections to Redis is one of them: up to 32, opened on demand and then kept.
    """
    now = use(program)
    return (
        now.threads <= before.threads * 1.1 + 12
        and now.files <= before.files * 1.1 + 12 + 32
        and now.memory <= before.memory * 1.1 + 48 * 1024 * 1024
    )


def _judge_history(key: tuple[int, str], answers: Sequence[Seen], *, may_step_back: bool) -> None:
    """Judge I3 and I5 on consecutive responses to one client."""
    over: set[tuple[str, int]] = set()
    for earlier, later in itertools.pairwise(answers):
        before, after = earlier.status, later.status
        assert after.revision >= before.revision, (key, before, after)
        if after.revision == before.revision:
            assert after == before, (key, before, after)
        assert after.exportation.progress_percent <= 99
        if before.HasField("exportation"):
            if _id(after) == _id(before):
                fell = after.exportation.progress_percent < before.exportation.progress_percent
                assert may_step_back or not fell, (key, before, after)
            else:
                over.add(_id(before))
            if not after.HasField("exportation"):
                assert after.HasField("last_outcome"), (key, before, after)
        assert not after.HasField("exportation") or _id(after) not in over, (key, before, after)


def _id(status: CellExport) -> tuple[str, int]:
    return status.exportation.name, status.exportation.start_time.ToNanoseconds()
