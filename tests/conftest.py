"""Fixtures that start the real thing: programs as processes, on free ports, on units in temporary directories."""

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit import ROOT, Unit


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    """A unit with one cell `demo`, and no program running yet. What is started on it is stopped with the test."""
    with Unit(tmp_path / "unit") as unit:
        unit.add_cell("demo", {"hello.txt": b"hello"})
        yield unit


@pytest.fixture(scope="module")
def shared_unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """A unit with server and gateway running, for tests that leave it as it was."""
    with Unit(tmp_path_factory.mktemp("shared") / "unit") as unit:
        unit.add_cell("demo", {"hello.txt": b"hello"})
        unit.start_server()
        unit.start_gateway()
        yield unit


@pytest.fixture(scope="session")
def node() -> Path:
    """Where the compiled examples in TypeScript are. The first test to ask for them waits for their packages."""
    with (ROOT / "examples" / "node" / "package.json").open() as lock:
        # Tests that run beside this one may want them, too.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "examples"], cwd=ROOT, check=True, timeout=360)
    return ROOT / "examples" / "node" / "build"
