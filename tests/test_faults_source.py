"""Faults of the exported cell: files that change, can't be read, or mislead during an export."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

import snapshots
from canary import Unstalled
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from injection import disk, needs_mount, slow_to_read, traced, warm
from oracle import Oracle
from unit import Program, Unit, eventually, meanwhile, needs, needs_root

CANARY = b"canary-7d1e6f0a"
# The size of the first file of an export that is halted, in MiB. The exporter needs six seconds for the file.
FIRST = 15
# The number of entries under 10_odata/. Every snapshot has them, and the exporter writes them first.
DATA = len(snapshots.ODATA)


@pytest.fixture
def webdav(unit: Unit) -> Path:
    """Return the directory with the files of the cell `demo`."""
    return unit.directory / "cells" / "demo" / "webdav"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a directory outside the cell. No snapshot may contain anything from it."""
    directory = tmp_path / "outside"
    (directory / "inner").mkdir(parents=True)
    for path in (directory / "secret", directory / "inner" / "secret"):
        path.write_bytes(CANARY)
    return directory


def entries(unit: Unit, name: str = "snap", cell: str = "demo") -> dict[str, str]:
    """Return the hash of each of the cell's files in a snapshot, or the reason why the file was skipped, by name.

    Assert that no entry of the snapshot contains the canary, the bytes of the files outside the cell.
    """
    path = unit.snapshots / cell / f"{name}.zip"
    _, lines = snapshots.read(path)
    with zipfile.ZipFile(path) as snapshot:
        for member in snapshot.namelist():
            with snapshot.open(member) as content:
                assert CANARY not in content.read(1024 * 1024)
    found = {line["name"]: str(line.get("skipped") or line["sha256"]) for line in lines}
    return {name.removeprefix("20_webdav/"): text for name, text in found.items() if name.startswith("20_webdav/")}


def succeeded(status: CellExport) -> bool:
    return status.last_outcome.result == Outcome.RESULT_SUCCEEDED


@contextmanager
def halted_in_the_first_file(unit: Unit, exporter: Program) -> Iterator[None]:
    """Start an export, and pause its exporter during the context: it has counted all files, and writes the first."""
    unit.begin("snap")
    eventually(lambda: unit.get().exportation.bytes_done > 0)
    exporter.signal(signal.SIGSTOP)
    assert unit.get().exportation.bytes_done < FIRST * 1024**2
    yield
    exporter.signal(signal.SIGCONT)


def start_exporter_with_a_slow_first_file(unit: Unit) -> Program:
    """Add a file that the exporter writes first, because of its name, and start an exporter that reads it slowly."""
    return unit.start_exporter(*slow_to_read(unit.add_large_file(FIRST, "0-large")))


@needs("strace")
@pytest.mark.fault("F56", "F59", "F63")
def test_a_path_that_changes_after_the_count_is_listed_as_it_is_now(unit: Unit, webdav: Path, canary: Path) -> None:
    for path in ("gone", "to-link", "to-pipe", "dir-gone/a", "dir-to-link/secret", "deep/to-link/inner/secret", "last"):
        (webdav / path).parent.mkdir(parents=True, exist_ok=True)
        (webdav / path).write_bytes(b"as it was")
    unit.start_server()
    exporter = start_exporter_with_a_slow_first_file(unit)

    with Oracle(unit):
        with halted_in_the_first_file(unit, exporter):
            for path in ("gone", "to-link", "to-pipe"):
                (webdav / path).unlink()
            for path in ("dir-gone", "dir-to-link", "deep/to-link"):
                shutil.rmtree(webdav / path)
            (webdav / "to-link").symlink_to(canary / "secret")
            os.mkfifo(webdav / "to-pipe")
            (webdav / "dir-to-link").symlink_to(canary)
            (webdav / "deep" / "to-link").symlink_to(canary)
        assert succeeded(unit.wait_until_ready())
    listed = entries(unit)

    assert {name: why for name, why in listed.items() if len(why) < 64} == {
        "gone": "vanished",
        "to-link": "symlink",
        "to-pipe": "special file",
        "dir-gone": "vanished",
        "dir-to-link": "symlink",
        "deep/to-link": "symlink",
    }
    assert {"0-large", "hello.txt", "last"} <= listed.keys()


@needs("strace")
@pytest.mark.parametrize(
    ("become", "listed"),
    [
        pytest.param(lambda path, _: path.unlink(), "vanished", marks=pytest.mark.fault("F56"), id="vanished"),
        pytest.param(
            lambda path, canary: replace(path, lambda fresh: fresh.symlink_to(canary / "secret")),
            "symlink",
            marks=pytest.mark.fault("F59"),
            id="link",
        ),
        pytest.param(
            lambda path, _: replace(path, os.mkfifo), "special file", marks=pytest.mark.fault("F63"), id="pipe"
        ),
    ],
)
def test_a_change_between_stat_and_open_is_listed_with_its_result(
    unit: Unit, webdav: Path, canary: Path, become: Callable[[Path, Path], object], listed: str
) -> None:
    unit.start_server()
    # The exporter calls stat on each file and then opens it. strace delays the open by a second, in which the test
    # changes the file.
    unit.start_exporter(*traced("openat", "delay_enter=1000000", paths=[webdav]))

    with Oracle(unit):
        unit.begin("snap")
        eventually(lambda: unit.get().exportation.entries_done == DATA)
        become(webdav / "hello.txt", canary)
        assert succeeded(unit.wait_until_ready())

    assert entries(unit) == {"hello.txt": listed}


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Replace a file atomically by what `make` creates, for example a pipe."""
    fresh = path.parent.parent / "fresh"
    make(fresh)
    fresh.replace(path)


@pytest.mark.long
@pytest.mark.fault("F59")
def test_a_directory_that_is_swapped_for_a_link_all_the_time_is_never_left(
    unit: Unit, webdav: Path, canary: Path, tmp_path: Path
) -> None:
    for number in range(20):
        (webdav / "swapped" / "inner" / str(number)).mkdir(parents=True)
        (webdav / "swapped" / "inner" / str(number) / "file").write_bytes(b"inside")
    unit.start_server()
    unit.start_exporter()
    outcomes = set()

    with Oracle(unit), swapping(webdav / "swapped", canary, tmp_path / "aside"):
        for number in range(60):
            unit.begin(f"round-{number}")
            assert succeeded(unit.wait_until_ready())
            outcomes.add(entries(unit, f"round-{number}").get("swapped", "walked"))

    # Some exports must have met the link and some the directory, or the swaps missed the exports.
    assert outcomes >= {"symlink", "walked"}


@contextmanager
def swapping(place: Path, other: Path, aside: Path) -> Iterator[None]:
    """Swap the directory `place` for a link to `other` and back, over and over, while the context is open."""
    chance = random.Random(59)
    link = aside.with_name("link")

    def swap(over: threading.Event) -> None:
        link.symlink_to(other)
        while not over.wait(chance.random() * 0.004):
            place.rename(aside)
            link.rename(place)
            over.wait(chance.random() * 0.004)
            place.rename(link)
            aside.rename(place)

    with meanwhile(swap):
        yield


@pytest.mark.fault("F59")
def test_links_to_other_cells_and_in_circles_are_not_followed(unit: Unit, webdav: Path) -> None:
    other = unit.add_cell("other", {"secret": CANARY})
    (webdav / "to-cell").symlink_to(other.parent)
    (webdav / "to-file").symlink_to(other / "secret")
    (webdav / "to-root").symlink_to("/")
    (webdav / "relative").symlink_to("../../other/webdav")
    (webdav / "a").symlink_to("b")
    (webdav / "b").symlink_to("a")
    unit.start_server()
    unit.start_exporter()

    with Oracle(unit):
        unit.begin("snap")
        assert succeeded(unit.wait_until_ready())
    listed = entries(unit)

    assert listed.pop("hello.txt")
    assert listed == dict.fromkeys(("to-cell", "to-file", "to-root", "relative", "a", "b"), "symlink")


def start_unprivileged(unit: Unit, webdav: Path) -> None:
    (webdav / "private").mkdir(mode=0)
    unit.start_exporter("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def start_on_a_bad_disk(unit: Unit, webdav: Path) -> None:
    (webdav / "private").write_bytes(b"can't be read")
    unit.start_exporter(*traced("read", "error=EIO", paths=[webdav / "private"]))


@pytest.mark.fault("F58")
@pytest.mark.parametrize(
    ("start", "why"),
    [
        pytest.param(start_unprivileged, "Permission denied", marks=[needs("setpriv"), needs_root], id="rights"),
        pytest.param(start_on_a_bad_disk, "Input/output error", marks=needs("strace"), id="disk"),
    ],
)
def test_an_unreadable_file_fails_the_export_and_only_the_log_has_its_path(
    unit: Unit, webdav: Path, start: Callable[[Unit, Path], None], why: str
) -> None:
    unit.start_server()
    unit.start_gateway()
    warm(unit)
    start(unit, webdav)
    exporter = unit.programs[-1]

    with Oracle(unit):
        unit.begin("snap")
        status = unit.wait_until_ready()
        assert status.last_outcome.reason == Outcome.REASON_SOURCE_UNREADABLE
        assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["snap.error"]
        assert "SOURCE_UNREADABLE" in (unit.snapshots / "demo" / "snap.error").read_text()
    assert exporter.wait_for_log("export stopped by an error")["error"] == f"private: {why}"
    assert unit.status() == {"status": "ready"}
    for text in (str(status), (unit.snapshots / "demo" / "snap.error").read_text()):
        assert "private" not in text


ZIP_SLIPS = [
    b"..\\..\\climbed", b"\\climbed", b"C:climbed", b"C:\\climbed", b"\\\\host\\share\\climbed", b"..%5C..%5Cclimbed",
    b"%2e%2e%2fclimbed", b"dots..", b"dots...", b"blank ", b". .", b"...", b" ", b"~", b"-rf", b"new\nline",
    b"\xff\xfe", b"a%00b", b"con", b"e\xcc\x81", b"\xc3\xa9", b"E", b"e", b"\xf0\x9f\x98\x80",
]  # fmt: skip


@needs("unzip")
@pytest.mark.fault("F61", "F62")
def test_files_of_any_name_unpack_to_their_own_places_below_one_directory(
    unit: Unit, webdav: Path, tmp_path: Path
) -> None:
    for directory in (b"", b"..\\up", b"C:"):
        here = os.path.join(os.fsencode(webdav), directory)  # noqa: PTH118 - names that are not valid text
        os.makedirs(here, exist_ok=True)  # noqa: PTH103
        for name in ZIP_SLIPS:
            with open(os.path.join(here, name), "wb") as file:  # noqa: PTH118, PTH123
                file.write(b"of " + directory + b"/" + name)
    unit.start_server()
    unit.start_exporter()
    with Oracle(unit):
        unit.begin("snap")
        assert succeeded(unit.wait_until_ready())
    assert not [text for text in entries(unit).values() if len(text) < 64]
    target = unit.snapshots / "demo" / "snap.zip"
    expected = 3 * len(ZIP_SLIPS) + 1
    with zipfile.ZipFile(target) as snapshot:
        for member in snapshot.namelist():
            assert not PurePosixPath(member).is_absolute()
            assert ".." not in PurePosixPath(member).parts
            assert len(member.encode()) <= 65_535
        assert len(unpacked(tmp_path / "python", lambda below: snapshot.extractall(below))) == expected
    subprocess.run(["unzip", "-tqq", target], check=True)
    found = unpacked(
        tmp_path / "unzip", lambda below: subprocess.run(["unzip", "-qq", target, "-d", below], check=True)
    )

    assert len(found) == expected


def unpacked(jail: Path, unpack: Callable[[Path], object]) -> list[Path]:
    """Unpack a snapshot deep inside the directory `jail`, and return the unpacked files of the cell.

    Assert that nothing was written to `jail` outside of the target directory.
    """
    below = jail / "a" / "b" / "c"
    below.mkdir(parents=True)
    unpack(below)
    assert list(jail.iterdir()) == [jail / "a"]
    assert list((jail / "a").iterdir()) == [jail / "a" / "b"]
    assert list((jail / "a" / "b").iterdir()) == [below]
    assert {path.name for path in below.iterdir()} == {"00_manifest.json", "00_entries.ndjson", "10_odata", "20_webdav"}
    return [path for path in (below / "20_webdav").rglob("*") if path.is_file()]


@pytest.mark.fault("F61")
def test_a_path_that_is_too_long_for_a_zip_is_listed_and_left_out(unit: Unit, webdav: Path) -> None:
    here = os.open(webdav, os.O_RDONLY)
    for _ in range(275):
        os.mkdir("d" * 254, dir_fd=here)
        below = os.open("d" * 254, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    unit.start_server()
    unit.start_exporter()
    unit.begin("snap")
    assert succeeded(unit.wait_until_ready())
    listed = entries(unit)
    assert listed.pop("hello.txt")
    assert set(listed.values()) == {"name too long"}
    leaf = ("d" * 254 + "/") * 275 + "leaf"
    assert len(leaf) > 70_000
    assert leaf in listed


@needs_root
@pytest.mark.fault("F63")
def test_endless_files_do_not_hold_an_export_up(unit: Unit, webdav: Path) -> None:
    try:
        os.mknod(webdav / "zero", 0o020666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("the tests have no right to make devices here")
    os.mkfifo(webdav / "pipe")
    unit.start_server()
    unit.start_exporter()
    with Oracle(unit), growing(webdav / "log"):
        unit.begin("snap")
        assert succeeded(unit.wait_until_ready())
    listed = entries(unit)

    assert (listed["zero"], listed["pipe"]) == ("special file", "special file")
    assert len(listed["log"]) == 64


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """Append to a file while the context is open."""
    with path.open("wb", buffering=0) as file:

        def write(over: threading.Event) -> None:
            while not over.is_set():
                file.write(bytes(64 * 1024))
                over.wait(0.001)

        with meanwhile(write):
            yield


@needs("strace")
@pytest.mark.fault("F66")
@pytest.mark.parametrize("change", ["added", "removed"])
def test_progress_stays_honest_though_there_is_more_or_less_than_was_counted(
    unit: Unit, webdav: Path, change: str
) -> None:
    later = webdav / "later"
    later.mkdir()

    def add() -> None:
        for number in range(1000):
            (later / f"{number}").write_bytes(b"x" * number)

    if change == "removed":
        add()
    unit.start_server()
    unit.start_gateway()
    warm(unit)
    exporter = start_exporter_with_a_slow_first_file(unit)
    seen: list[int] = []

    with Oracle(unit):
        with halted_in_the_first_file(unit, exporter):
            add() if change == "added" else shutil.rmtree(later)

        def is_ready() -> bool:
            status = unit.status()
            if status["status"] == "ready":
                return True
            seen.append(int(status["progress"].removesuffix("%")))
            return False

        eventually(is_ready, within=40)

        assert succeeded(unit.get())

    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 99
    assert len(entries(unit)) == (1002 if change == "added" else 3)


@needs_mount
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.fault("F65")
def test_a_million_files_are_exported_in_little_memory_and_delay_no_status(tmp_path: Path) -> None:
    number = 1_000_000
    with disk(tmp_path / "disk", "size=4g,nr_inodes=0") as place, Unit(place / "unit") as unit:
        add_tiny_files(unit.add_cell("demo"), number)
        unit.start_server()
        unit.start_gateway()
        exporter = unit.start_exporter()
        times: list[float] = []

        def is_ready() -> bool:
            begun = time.monotonic()
            status = unit.status()["status"]
            times.append(time.monotonic() - begun)
            threading.Event().wait(0.03)
            return status == "ready"

        before, begun, unstalled = unit.get().revision, time.monotonic(), Unstalled()
        unit.begin("snap")
        eventually(is_ready, within=400)
        took, share = time.monotonic() - begun, unstalled.share()
        status = unit.get()
        assert succeeded(status)
        assert sorted(times)[int(len(times) * 0.99)] * share < 0.1
        assert exporter.peak_memory() < 600 * 1024**2
        assert status.revision - before <= 5 * took + 10
        manifest, _ = snapshots.read(unit.snapshots / "demo" / "snap.zip")
        assert manifest["entry_count"] == number + DATA


def add_tiny_files(webdav: Path, number: int) -> None:
    """Add `number` files, 1000 in each directory. Nine of ten are empty, and so take no page of memory on the disk."""
    for directory in range(number // 1000):
        path = webdav / str(directory)
        path.mkdir()
        here = os.open(path, os.O_RDONLY)
        for file in range(1000):
            descriptor = os.open(f"tiny-{file}.txt", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=here)
            if file % 10 == 0:
                os.write(descriptor, b"tiny")
            os.close(descriptor)
        os.close(here)
