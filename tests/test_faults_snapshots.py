"""The snapshot directory under faults: a full disk, failing writes, read-only, or not a directory."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import snapshots
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from injection import disk, failing, needs_mount, remount, traced
from oracle import Oracle
from unit import Unit, eventually, needs, needs_root


def reason(status: CellExport) -> str:
    """Return the reason of a failed export, or `SUCCEEDED`."""
    assert status.state == CellExport.STATE_READY
    if status.last_outcome.result == Outcome.RESULT_SUCCEEDED:
        return "SUCCEEDED"
    assert status.last_outcome.result == Outcome.RESULT_FAILED
    return Outcome.Reason.Name(status.last_outcome.reason).removeprefix("REASON_")


def export(unit: Unit, name: str, cell: str = "demo") -> str:
    unit.begin(name, cell)
    return reason(unit.wait_until_ready(cell))


def files(unit: Unit, cell: str = "demo") -> list[str]:
    return sorted(path.name for path in (unit.snapshots / cell).iterdir())


def noise(size: int) -> bytes:
    """Return bytes that can't be compressed."""
    return random.Random(68).randbytes(size)


def room(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


@needs_mount
@pytest.mark.fault("F68", "F69")
def test_a_disk_that_is_full_fails_one_export_and_gives_the_room_back(unit: Unit) -> None:
    """Exports succeed on a disk of their own, so no snapshot is renamed from a directory for temporary files."""
    unit.add_cell("large", {"noise": noise(6 * 1024**2)})
    unit.add_cell("other", {"noise": noise(1024**2)})

    with disk(unit.snapshots, "size=4m") as place:
        unit.start_server()
        unit.start_exporter()

        with Oracle(unit, cells=("demo", "large")):
            assert export(unit, "older") == "SUCCEEDED"
            before = room(place)
            assert export(unit, "snap", "large") == "NO_SPACE"
            assert files(unit, "large") == ["snap.error"]
            assert "NO_SPACE" in (unit.snapshots / "large" / "snap.error").read_text()
            # The failed export has freed all its space, except for its file snap.error, which takes a page of memory on
            # this disk.
            assert room(place) >= before - 2 * 4096
            assert export(unit, "snap", "other") == "SUCCEEDED"
        snapshots.read(place / "demo" / "older.zip")
        snapshots.read(place / "other" / "snap.zip")


@needs_mount
@pytest.mark.fault("F68")
@pytest.mark.parametrize(
    ("inodes", "left"),
    [
        # The disk's root and the cell's directory take two inodes. Of the exporter's files (the unfinished snapshot,
        # the list of its entries, snap.error) none or one fits.
        (2, []),
        (3, ["snap.error"]),
    ],
)
def test_a_disk_without_room_for_another_file_fails_the_export(unit: Unit, inodes: int, left: list[str]) -> None:
    with disk(unit.snapshots, f"size=4m,nr_inodes={inodes}") as place:
        unit.start_server()
        exporter = unit.start_exporter()
        with Oracle(unit, exporter=False):
            assert export(unit, "snap") == "NO_SPACE"
            assert files(unit) == left
            remount(place, "nr_inodes=100")
            assert export(unit, "snap") == "SUCCEEDED"
            assert files(unit) == ["snap.zip"]
        assert exporter.terminate() == 0


@needs("strace")
@pytest.mark.fault("F68")
def test_a_quota_that_is_used_up_fails_the_export(unit: Unit) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    unit.add_large_file(256, "0-large")
    (webdav / "noise").write_bytes(noise(4 * 1024**2))
    unit.start_server()
    exporter = unit.start_exporter()

    with Oracle(unit):
        unit.begin("snap")
        eventually(lambda: unit.get().exportation.bytes_done > 0)
        (part,) = (unit.snapshots / "demo").glob("*.part")
        with failing(exporter, "write,pwrite64", "EDQUOT", part):
            assert reason(unit.wait_until_ready()) == "NO_SPACE"
        assert files(unit) == ["snap.error"]


@needs("strace")
@pytest.mark.fault("F48")
@pytest.mark.parametrize("when", [1, 2], ids=["of the part", "of the directory"])
def test_a_snapshot_whose_fsync_failed_is_not_published_and_no_fsync_is_tried_again(
    unit: Unit, tmp_path: Path, when: int
) -> None:
    unit.start_server()
    log = tmp_path / "fsyncs"
    # The exporter's first fsync is for the unfinished snapshot (`.part`). Its second is for the directory, after the
    # `.part` file was renamed to the zip.
    exporter = unit.start_exporter(*traced("fsync,fdatasync", f"error=EIO:when={when}", log))

    with Oracle(unit):
        assert export(unit, "snap") == "SNAPSHOT_UNWRITABLE"
        assert files(unit) == ["snap.error"]
        assert len(log.read_text().splitlines()) == when
        # The exporter must not trust a file after a failed fsync: the next export writes and syncs a new file.
        assert export(unit, "snap") == "SUCCEEDED"
        assert files(unit) == ["snap.zip"]

    assert exporter.process.poll() is None


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    with disk(place, "size=4m"):
        remount(place, "ro")
        yield


@contextmanager
def a_file(place: Path) -> Iterator[None]:
    place.write_bytes(b"no directory")
    yield


@contextmanager
def a_link(place: Path) -> Iterator[None]:
    elsewhere = place.with_name("elsewhere")
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    yield
    assert list(elsewhere.iterdir()) == []


@contextmanager
def a_link_to_nothing(place: Path) -> Iterator[None]:
    place.symlink_to(place.with_name("nowhere"))
    yield
    assert not place.exists()


UNUSABLE = pytest.mark.parametrize(
    ("harm", "why"),
    [
        pytest.param(read_only, "Read-only file system", marks=needs_mount, id="read-only"),
        pytest.param(a_file, "Not a directory", id="file"),
        pytest.param(a_link, "it is a link", id="link"),
        pytest.param(a_link_to_nothing, "it is a link", id="link to nothing"),
    ],
)


@UNUSABLE
@pytest.mark.fault("F69")
def test_an_exporter_that_can_not_leave_snapshots_ends_at_the_start_and_says_why(
    unit: Unit, harm: Callable[[Path], AbstractContextManager[None]], why: str
) -> None:
    unit.start_server()
    with harm(unit.snapshots):
        exporter = unit.start("server.exporter")
        assert exporter.process.wait(60) == 2
    assert exporter.log.read_text() == f"cellexport-exporter: {unit.snapshots} can't be used for snapshots: {why}.\n"


@needs("setpriv")
@needs_root
@pytest.mark.fault("F69")
def test_an_exporter_that_may_not_leave_snapshots_ends_at_the_start_and_says_why(unit: Unit) -> None:
    unit.start_server()
    unit.snapshots.mkdir(mode=0o500)
    exporter = unit.start("server.exporter", "setpriv", "--bounding-set=-dac_override,-dac_read_search")
    assert exporter.process.wait(60) == 2
    assert exporter.log.read_text().endswith(f"{unit.snapshots} can't be used for snapshots: Permission denied.\n")


@UNUSABLE
@pytest.mark.fault("F69")
def test_exports_fail_only_while_the_snapshot_directory_is_unusable(
    unit: Unit, harm: Callable[[Path], AbstractContextManager[None]], why: str
) -> None:
    unit.start_server()
    exporter = unit.start_exporter()

    with Oracle(unit):
        unit.snapshots.rmdir()
        with harm(unit.snapshots):
            assert export(unit, "snap") == "SNAPSHOT_UNWRITABLE"
        error = exporter.wait_for_log("export stopped by an error")["error"]
        assert why in error
        assert str(unit.snapshots) in error
        clear(unit.snapshots)
        assert export(unit, "snap") == "SUCCEEDED"
        assert files(unit) == ["snap.zip"]


def clear(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


@pytest.mark.fault("F69")
def test_a_cells_directory_of_snapshots_may_not_be_a_link(unit: Unit, tmp_path: Path) -> None:
    unit.start_server()
    unit.start_exporter()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (unit.snapshots / "demo").symlink_to(elsewhere)
    assert export(unit, "snap") == "SNAPSHOT_UNWRITABLE"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.fault("F69")
def test_a_snapshot_directory_that_is_missing_is_made(unit: Unit) -> None:
    unit.start_server()
    assert not unit.snapshots.exists()
    unit.start_exporter()
    assert unit.snapshots.stat().st_mode & 0o777 == 0o700
    with Oracle(unit):
        unit.snapshots.rmdir()
        assert export(unit, "snap") == "SUCCEEDED"
