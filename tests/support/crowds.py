"""Helpers to run a crowd of watches, and to measure a server meanwhile."""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cellexport import client
from cellexport.v1.cell_export_pb2 import GetCellExportRequest
from cellexport.v1.cell_export_pb2_grpc import CellExportServiceStub
from unit import ROOT, TOKEN, Program, Unit


@dataclass
class Crowd:
    process: subprocess.Popen[str]

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], *, within: float) -> dict[str, Any]:
        """Read the reports of the crowd's process, and return the first that meets the condition."""
        deadline = time.monotonic() + within
        assert self.process.stdout
        for line in self.process.stdout:
            report: dict[str, Any] = json.loads(line)
            if condition(report):
                return report
            assert time.monotonic() < deadline, f"condition not met within {within} s: {report}"
        raise AssertionError("the crowd has exited")


@contextmanager
def crowd(unit: Unit, watches: int, *, connections: int, cells: int) -> Iterator[Crowd]:
    """Make the cells `cell0` and so on, and watch them from another process while the context is open."""
    for number in range(cells):
        if not (unit.directory / "cells" / f"cell{number}").is_dir():
            unit.add_cell(f"cell{number}")
    words = [f"127.0.0.1:{unit.grpc_port}", str(watches), str(connections), str(cells)]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "crowd.py"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=allow_many_files,
    ) as process:
        try:
            yield Crowd(process)
        finally:
            process.kill()


def allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def latencies(unit: Unit, calls: int, cell: str = "cell0") -> list[float]:
    """Return the durations of consecutive GetCellExport calls, in milliseconds."""
    taken = []
    with unit.channel() as channel:
        stub, metadata = CellExportServiceStub(channel), client.bearer(TOKEN)
        for _ in range(calls):
            began = time.perf_counter()
            stub.GetCellExport(GetCellExportRequest(cell=cell), metadata=metadata, timeout=10)
            taken.append((time.perf_counter() - began) * 1000)
    return taken


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def memory(program: Program) -> int:
    """Return the resident memory of a program, in bytes."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


def files(program: Program) -> int:
    return len(list(Path(f"/proc/{program.process.pid}/fd").iterdir()))


def cpu_seconds(program: Program) -> float:
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def await_reachable(unit: Unit) -> None:
    with unit.channel() as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
