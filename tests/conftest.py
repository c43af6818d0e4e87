"""Fixtures that start real programs as processes, on free ports, on units in temporary directories."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from unit import ROOT, Unit

# A test that uses one of these fixtures starts programs.
_WITH_PROGRAMS = frozenset({"unit", "shared_unit", "node", "pki", "shared", "snapshot"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start programs, for `make quick` to leave out. Run the longest tests first: a long test that
    starts last would leave a processor idle.
    """
    for item in items:
        if isinstance(item, pytest.Function) and _WITH_PROGRAMS & set(item.fixturenames):
            item.add_marker(pytest.mark.process)
    items.sort(key=_longest_allowed, reverse=True)


def _longest_allowed(item: pytest.Item) -> float:
    """Return the time limit of a long test that has a limit of its own, in seconds; 0 for other tests."""
    limit = item.get_closest_marker("timeout")
    return limit.args[0] if limit and item.get_closest_marker("long") else 0


class _QuickTests:
    """A plugin of `make quick` that fails each test that starts a program."""

    def __init__(self) -> None:
        self._test = ""
        sys.addaudithook(self._refuse_programs)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._test = item.nodeid
        try:
            return (yield)
        finally:
            self._test = ""

    def _refuse_programs(self, event: str, _: tuple[object, ...]) -> None:
        if self._test and event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
            raise RuntimeError(f"{self._test} starts a program: mark it with `process`")


def pytest_configure(config: pytest.Config) -> None:
    """Register the check that quick tests start no program."""
    if os.environ.get("QUICK"):
        config.pluginmanager.register(_QuickTests())


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    """Yield a unit with one cell `demo` and no program. Programs that the test starts on it are killed at its end."""
    with Unit(tmp_path / "unit") as unit:
        unit.add_cell("demo", {"hello.txt": b"hello"})
        yield unit


@pytest.fixture(scope="module")
def shared_unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """Yield a unit with server and gateway running, for tests that leave it unchanged."""
    with Unit(tmp_path_factory.mktemp("shared") / "unit") as unit:
        unit.add_cell("demo", {"hello.txt": b"hello"})
        unit.start_server()
        unit.start_gateway()
        yield unit


@pytest.fixture(scope="session")
def node() -> Path:
    """Return the directory of the compiled TypeScript examples. The first test that needs them compiles them."""
    with (ROOT / "examples" / "node" / "package.json").open() as lock:
        # Tests run in parallel processes. Only one of them may compile at a time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "examples"], cwd=ROOT, check=True, timeout=360)
    return ROOT / "examples" / "node" / "build"
