"""The bundled exporter on real trees of files, checked by the snapshots and `.error` files that it writes."""

import hashlib
import json
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

import snapshots
from cellexport.v1.cell_export_pb2 import CellExport, Outcome
from injection import slow_to_read
from unit import OWNER, UNIT_URL, Unit, eventually, needs, needs_root


def run_export(unit: Unit, name: str = "snap", *, within: float = 30.0) -> CellExport:
    if not unit.programs:
        unit.start_server()
        unit.start_exporter()
    unit.begin(name)
    return unit.wait_until_ready(within=within)


def entries(unit: Unit, name: str = "snap") -> dict[str, dict[str, object]]:
    _, lines = snapshots.read(unit.snapshots / "demo" / f"{name}.zip")
    return {line["name"]: line for line in lines}


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_real_tree_is_exported_whole_and_each_percent_is_true(unit: Unit, tmp_path: Path) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    library = Path(sysconfig.get_path("stdlib"))
    number = 0

    while sum(len(files) for _, _, files in os.walk(webdav)) < 10_000:
        number += 1
        ignored = shutil.ignore_patterns("site-packages", "__pycache__")
        shutil.copytree(library, webdav / f"copy-{number}", symlinks=True, ignore=ignored)
    unit.start_server()
    unit.start_gateway()
    exporter = unit.start_exporter()
    unit.begin("library")
    target = unit.snapshots / "demo" / "library.zip"
    seen: list[str] = []

    def is_ready() -> bool:
        published = target.exists()
        body = unit.http().json()
        if body == {"status": "ready"}:
            return True
        assert body["exportation_name"] == "library"
        seen.append(body["progress"])
        assert not (published and body["progress"] == "100%")
        return False

    eventually(is_ready, within=200)
    assert all(re.fullmatch(r"[0-9]{1,2}%", progress) for progress in seen)
    percents = [int(progress[:-1]) for progress in seen]
    assert percents == sorted(percents)
    assert len(set(percents)) > 20
    assert exporter.peak_memory() < 150 * 1024 * 1024

    if shutil.which("unzip") or os.environ.get("CI"):
        subprocess.run(["unzip", "-tqq", target], check=True)
    manifest, lines = snapshots.read(target)
    assert (manifest["export_version"], manifest["cell"], manifest["unit_url"]) == (2, "demo", UNIT_URL)
    expected = {
        f"20_webdav/{path.relative_to(webdav)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in webdav.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert len(expected) >= 10_000
    found = {line["name"]: line["sha256"] for line in lines if "skipped" not in line and not line["name"].endswith("/")}
    assert {name: digest for name, digest in found.items() if name.startswith("20_webdav/")} == expected


def test_the_data_part_is_whole_whether_or_not_the_cell_has_it(unit: Unit) -> None:
    odata = unit.directory / "cells" / "demo" / "odata"
    odata.mkdir()
    (odata / "10_box.pjson").write_bytes(b'{"Name":"box1"}\n')
    (odata / "other.txt").write_bytes(b"?")
    run_export(unit)
    found = entries(unit)
    assert found["10_odata/10_box.pjson"]["size"] == 16
    assert found["10_odata/80_link.pjson"]["size"] == 0
    assert found["10_odata/other.txt"] == {"name": "10_odata/other.txt", "skipped": "not a known part of a cell"}

    with zipfile.ZipFile(unit.snapshots / "demo" / "snap.zip") as snapshot:
        assert json.loads(snapshot.read("10_odata/00_cell.json")) == {
            "_id": "demo",
            "_source": {"Name": "demo", "Owner": OWNER},
        }


@pytest.mark.fault("F59", "F63")
def test_links_are_never_followed_and_special_files_are_listed(unit: Unit, tmp_path: Path) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret").write_bytes(b"canary-0f8fad5b")
    (webdav / "file-link").symlink_to(canary / "secret")
    (webdav / "dir-link").symlink_to(canary)
    (webdav / "loop").symlink_to(webdav)
    os.mkfifo(webdav / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(webdav / "socket"))
    (webdav / "empty" / "inner").mkdir(parents=True)

    assert run_export(unit).last_outcome.result == Outcome.RESULT_SUCCEEDED
    found = entries(unit)
    skipped = {name: line["skipped"] for name, line in found.items() if "skipped" in line}
    assert skipped == {
        "20_webdav/file-link": "symlink",
        "20_webdav/dir-link": "symlink",
        "20_webdav/loop": "symlink",
        "20_webdav/pipe": "special file",
        "20_webdav/socket": "special file",
    }
    assert "20_webdav/empty/inner/" in found
    assert "20_webdav/empty/" not in found
    assert b"canary-0f8fad5b" not in (unit.snapshots / "demo" / "snap.zip").read_bytes()


@pytest.mark.fault("F59")
def test_a_cells_own_directories_may_not_be_links(unit: Unit, tmp_path: Path) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    shutil.rmtree(webdav)
    webdav.symlink_to(tmp_path)
    assert run_export(unit).last_outcome.reason == Outcome.REASON_SOURCE_UNREADABLE


@pytest.mark.fault("F59")
def test_data_that_can_not_be_taken_fails_the_export(unit: Unit) -> None:
    odata = unit.directory / "cells" / "demo" / "odata"
    odata.mkdir()
    (odata / "10_box.pjson").symlink_to("/etc/passwd")
    assert run_export(unit).last_outcome.reason == Outcome.REASON_SOURCE_UNREADABLE


@pytest.mark.fault("F61", "F62")
def test_odd_names_and_dates_survive(unit: Unit) -> None:
    webdav = os.fsencode(unit.directory / "cells" / "demo" / "webdav")
    odd = [
        b"new\nline", b"back\\..\\slash", b"\xff\xfe", b"caf\xc3\xa9", b"cafe\xcc\x81", b"CASE", b"case", b"100%.txt",
        b"a%5Cb", b"a\\b", b"\xed\xa0\x80", b"trailing. ", b"C:x", b"\xf0\x9f\x98\x80", b" ", b"...",
    ]  # fmt: skip
    for name in odd:
        with open(os.path.join(webdav, name), "wb") as file:  # noqa: PTH118, PTH123 - names that are not valid text
            file.write(b"of " + name)
    os.utime(os.path.join(webdav, b"CASE"), (0, -86400))  # noqa: PTH118
    os.utime(os.path.join(webdav, b"case"), (0, 5_000_000_000))  # noqa: PTH118

    assert run_export(unit).last_outcome.result == Outcome.RESULT_SUCCEEDED
    found = {name: line for name, line in entries(unit).items() if name.startswith("20_webdav/")}
    assert len(found) == len(odd) + 1
    assert {line["sha256"] for line in found.values()} == {
        hashlib.sha256(content).hexdigest() for content in (b"hello", *(b"of " + name for name in odd))
    }
    assert found["20_webdav/back%5C..%5Cslash"]["original_name"] == "20_webdav/back\\..\\slash"
    assert found["20_webdav/%FF%FE"]["original_name"] == r"20_webdav/\xff\xfe"
    assert "original_name" not in found["20_webdav/café"]
    assert (found["20_webdav/CASE"]["mtime"], found["20_webdav/case"]["mtime"]) == (-86_400_000, 5_000_000_000_000)


@pytest.mark.fault("F12")
@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_file_of_two_gigabytes_shows_progress_and_needs_no_more_memory(unit: Unit) -> None:
    # One byte more than two gigabytes: sizes and offsets no longer fit into 31 bits.
    os.truncate(unit.add_large_file(2 * 1024), 2 * 1024**3 + 1)
    unit.start_server()
    # Limit the exporter's address space, threads and libraries included, to less than the size of the file.
    exporter = unit.start_exporter("prlimit", f"--as={2 * 1024**3}")

    unit.begin("huge")
    seen: set[int] = set()

    def is_ready() -> bool:
        status = unit.get()
        seen.add(status.exportation.progress_percent)
        return status.state == CellExport.STATE_READY

    eventually(is_ready, within=200)

    assert exporter.peak_memory() < 150 * 1024 * 1024
    assert len(seen) > 10
    assert unit.get().last_outcome.result == Outcome.RESULT_SUCCEEDED


def test_snapshots_are_private(unit: Unit) -> None:
    run_export(unit)
    target = unit.snapshots / "demo" / "snap.zip"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((unit.directory / "export.db").stat().st_mode) == 0o600


@needs("strace")
@pytest.mark.fault("F65")
def test_reports_come_at_most_five_times_a_second(unit: Unit) -> None:
    slow = slow_to_read(unit.add_large_file(10))
    unit.start_server()
    unit.start_exporter(*slow)
    before, begun = unit.get().revision, time.monotonic()
    status = run_export(unit)
    assert 3 < status.revision - before <= 5 * (time.monotonic() - begun) + 5


def test_a_name_that_appears_meanwhile_is_left_as_it_is(unit: Unit) -> None:
    unit.start_server()
    unit.begin("taken")
    (unit.snapshots / "demo").mkdir(parents=True)
    (unit.snapshots / "demo" / "taken.zip").write_bytes(b"somebody's")
    unit.start_exporter()
    assert unit.wait_until_ready().last_outcome.reason == Outcome.REASON_NAME_TAKEN
    assert (unit.snapshots / "demo" / "taken.zip").read_bytes() == b"somebody's"


@pytest.mark.fault("F58")
@needs_root
def test_an_unreadable_source_fails_the_export_with_its_reason(unit: Unit) -> None:
    (unit.directory / "cells" / "demo" / "webdav" / "hello.txt").chmod(0)
    unit.start_server()
    # Run the exporter as root, but without the capabilities that let root read any file.
    unit.start_exporter("setpriv", "--bounding-set=-dac_override,-dac_read_search")

    unit.begin("unreadable")
    assert unit.wait_until_ready().last_outcome.reason == Outcome.REASON_SOURCE_UNREADABLE
    directory = unit.snapshots / "demo"
    assert [path.name for path in directory.iterdir()] == ["unreadable.error"]
    assert (directory / "unreadable.error").read_text() == (
        '{"code":"PR500-CX-0001","message":{"lang":"en","value":"Cell export failed. [SOURCE_UNREADABLE]"}}'
    )


@pytest.mark.fault("F68")
def test_a_snapshot_too_large_for_its_place_fails_and_the_next_try_succeeds(unit: Unit) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    (webdav / "noise").write_bytes(random.Random(1).randbytes(3_000_000))
    unit.start_server()
    small = unit.start_exporter("prlimit", "--fsize=1000000")

    unit.begin("large")
    assert unit.wait_until_ready().last_outcome.reason == Outcome.REASON_NO_SPACE
    assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["large.error"]
    assert small.terminate() == 0
    unit.start_exporter()
    unit.begin("large")

    assert unit.wait_until_ready().last_outcome.result == Outcome.RESULT_SUCCEEDED
    assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["large.zip"]


@pytest.mark.fault("F09")
def test_sigterm_ends_an_export_cleanly_and_soon(unit: Unit) -> None:
    unit.add_large_file(50 * 1024)
    unit.start_server()
    exporter = unit.start_exporter()

    unit.begin("cut")
    eventually(lambda: unit.get().exportation.bytes_done > 0)
    assert exporter.terminate() == 0
    status = unit.wait_until_ready(within=1)
    assert (status.last_outcome.result, status.last_outcome.reason) == (
        Outcome.RESULT_INTERRUPTED,
        Outcome.REASON_SHUTDOWN,
    )
    assert [path.name for path in (unit.snapshots / "demo").iterdir()] == ["cut.error"]


def test_an_idle_exporter_ends_at_once(unit: Unit) -> None:
    unit.start_server()
    exporter = unit.start_exporter()
    assert exporter.terminate() == 0


def test_a_refused_token_ends_the_exporter_with_one_clear_sentence(unit: Unit) -> None:
    unit.start_server()
    exporter = unit.start("server.exporter", CELLEXPORT_EXPORTER_TOKEN="another")
    assert exporter.process.wait(60) == 2
    assert "the server refuses the token: set CELLEXPORT_EXPORTER_TOKEN" in exporter.log.read_text()


def test_the_limit_on_open_files_does_not_bound_the_depth_of_a_tree(unit: Unit) -> None:
    webdav = unit.directory / "cells" / "demo" / "webdav"
    here = os.open(webdav, os.O_RDONLY)

    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    unit.start_server()
    unit.start_exporter("prlimit", "--nofile=64:64")

    assert run_export(unit).last_outcome.result == Outcome.RESULT_SUCCEEDED
    assert "20_webdav/" + "d/" * 300 + "leaf" in entries(unit)
