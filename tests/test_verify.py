"""`python -m server.exporter verify`: snapshots of the exporter are complete, and any later damage is named."""

import hashlib
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import snapshots
import zygote
from damage import (
    BLOCK,
    ENTRIES,
    MANIFEST,
    Parts,
    changed,
    contents_of,
    data_of,
    deflated_zeros,
    flipped,
    header_at,
    patched,
    record_at,
    with_deflated,
)
from server.exporter.__main__ import cli
from server.exporter.tally import Tally
from server.exporter.verifying.verify import Complete, Problem
from server.exporter.verifying.verify import verify as findings_in
from unit import Unit, needs, needs_root

HELLO = "20_webdav/hello.txt"
NOISE = "20_webdav/noise.bin"
EMPTY = "20_webdav/empty/"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a snapshot that the real server and exporter made."""
    with Unit(tmp_path_factory.mktemp("verify") / "unit") as unit:
        noise = random.Random(1).randbytes(600)
        webdav = unit.add_cell("demo", {"hello.txt": b"hello" * 50, "noise.bin": noise, "d/名前 %41": b"named"})
        (webdav / "empty").mkdir()
        (webdav / "link").symlink_to("hello.txt")
        unit.start_server()
        unit.start_exporter()
        unit.begin("snap")
        unit.wait_until_ready()
        path = unit.snapshots / "demo" / "snap.zip"
        snapshots.read(path)
        return path.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "snap.zip"


def run(*arguments: str | Path, before: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m server.exporter verify` as a process, and return its exit status and both output streams.

    Args:
        before: the words to put before the command.
        variables: the environment variables of the process; it has no others.
    """
    if not (before or variables):
        return zygote.run("server.exporter", "verify", *map(str, arguments), environment={})
    command = [*before, sys.executable, "-m", "server.exporter", "verify", *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def judged(path: Path) -> tuple[int, list[str]]:
    """Run `verify` in this process. Return its exit status and standard output: the lines, without the file's name."""
    done = CliRunner().invoke(cli, ["verify", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith(f"{path}: ") for line in lines)
    return done.exit_code, [line.removeprefix(f"{path}: ") for line in lines]


def test_a_snapshot_of_the_exporter_is_complete(snapshot: bytes, file: Path) -> None:
    file.write_bytes(snapshot)
    done = run(file)

    manifest, lines = snapshots.read(file)
    assert manifest["entry_count"] == 17 + 4
    counts = rf"{manifest['entry_count']} entries, {manifest['bytes']:,} bytes"
    time = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"{re.escape(str(file))}: complete: {counts}, exported {time} from cell demo\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line["skipped"] for line in lines if "skipped" in line] == ["symlink"]


@pytest.mark.fault("F71")
def test_one_byte_that_changed_is_named_by_its_entry(snapshot: bytes, file: Path) -> None:
    for name, content in contents_of(snapshot).items():
        data = data_of(snapshot, name)
        if content:
            file.write_bytes(flipped(snapshot, data[len(data) // 2]))
            status, lines = judged(file)
            assert status == 1
            assert [line.startswith(f"{name}: ") for line in lines] == [True], lines

    file.write_bytes(flipped(snapshot, data_of(snapshot, HELLO)[5]))
    done = run(file)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{file}: {HELLO}: its content is damaged")


@pytest.mark.fault("F71")
def test_a_snapshot_that_was_cut_off_is_reported(snapshot: bytes, file: Path) -> None:
    for size in range(0, len(snapshot), 97):
        file.write_bytes(snapshot[:size])
        status, [line] = judged(file)
        assert status == 1
        assert line.startswith("zip: it is not a zip" if size < 22 else "zip: its end record is missing")


def twice(snapshot: bytes) -> bytes:
    """Return the snapshot with two entries of the same name."""
    other = HELLO.replace("hello", "jello")
    more = changed(snapshot, lambda parts: parts.contents.update({other: b"x"}))
    return more.replace(other.encode(), HELLO.encode())


def parts(change: Callable[[Parts], object], *, sealed: bool = True) -> Callable[[bytes], bytes]:
    return lambda snapshot: changed(snapshot, change, sealed=sealed)


def holding(name: str, content: bytes) -> Callable[[bytes], bytes]:
    return parts(lambda parts: parts.contents.update({name: content}))


def reads(text: bytes) -> Callable[[bytes], bytes]:
    """Return a function that replaces the manifest of a snapshot by this text."""
    return parts(lambda parts: parts.raw.update({MANIFEST: text}))


def lists(text: bytes) -> Callable[[bytes], bytes]:
    return parts(lambda parts: parts.raw.update({ENTRIES: text}))


def says(**what: object) -> Callable[[bytes], bytes]:
    """Return a function that changes members of a snapshot's manifest. None removes a member."""

    def change(parts: Parts) -> None:
        parts.seal().manifest.update(what)
        for key in [key for key, value in what.items() if value is None]:
            del parts.manifest[key]

    return parts(change, sealed=False)


def numbers(name: str, *, header: bool = True, record: bool = True, **numbers: int) -> Callable[[bytes], bytes]:
    return lambda snapshot: patched(snapshot, name, header=header, record=record, **numbers)


def added(name: str) -> Callable[[bytes], bytes]:
    return parts(lambda parts: parts.add(name))


def overlapping(snapshot: bytes) -> bytes:
    """Return the snapshot with two entries that share the same bytes of the file, as in zip bombs."""
    return patched(snapshot, NOISE, offset=header_at(snapshot, HELLO))


def with_field(kind: int) -> Callable[[bytes], bytes]:
    """Return a function that adds an extra field to the last record in the zip's directory, which is the manifest's."""

    def damage(snapshot: bytes) -> bytes:
        position = record_at(snapshot, MANIFEST)
        end = position + 46 + len(MANIFEST)
        data = bytearray(snapshot[:end] + kind.to_bytes(2, "little") + b"\1\0x" + snapshot[end:])
        data[position + 30 : position + 32] = b"\5\0"
        data[-10:-6] = (int.from_bytes(data[-10:-6], "little") + 5).to_bytes(4, "little")
        return bytes(data)

    return damage


LINE = b'{"name":"x","size":1,"sha256":"%s","mtime":0}\n'
GOOD_HASH = b"0" * 64

DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    # Damage to the zip file as a whole.
    "empty": (lambda _: b"", "zip: it is not a zip"),
    "no zip": (lambda _: b"once upon a time there was a zip", "zip: it is not a zip"),
    "appended": (lambda snapshot: snapshot + b"\n", "zip: .*bytes were appended"),
    "a comment": (lambda snapshot: snapshot[:-2] + b"\1\0x", "zip: .*bytes were appended"),
    "put before": (lambda snapshot: b"#!/bin/sh\n" + snapshot, "zip: bytes .* were put before it"),
    "a hole": (lambda snapshot: snapshot[:50] + snapshot[60:], "zip: bytes are missing"),
    "no directory": (lambda snapshot: snapshot[-22:], "zip: bytes are missing"),
    "nothing in it": (lambda _: b"PK\5\6" + bytes(18), f"{MANIFEST}: it is missing"),
    "twice": (lambda snapshot: snapshot * 2, "zip: bytes"),
    # Damaged entries, and entries that differ from the list of entries.
    "missing": (parts(lambda parts: parts.contents.pop(HELLO)), f"{HELLO}: it is missing"),
    "not listed": (parts(lambda parts: parts.contents.update(x=b"")), "x: it is not in the list"),
    "listed as skipped": (
        parts(lambda parts: parts.lines.append({"name": parts.lines.pop()["name"], "skipped": "symlink"})),
        "20_webdav/.*: it is not in the list",
    ),
    "not always there": (
        parts(lambda parts: parts.remove("10_odata/20_role.pjson")),
        "10_odata/20_role.pjson: it is missing, but every snapshot has it",
    ),
    "longer": (
        parts(lambda parts: parts.contents.update({HELLO: b"x" * 251})),
        f"{HELLO}: it has 251 bytes, but the list says 250",
    ),
    "another": (parts(lambda parts: parts.contents.update({HELLO: b"x" * 250})), f"{HELLO}: its content differs"),
    "twice in the zip": (twice, f"{HELLO}: it is in the zip more than once"),
    "encrypted": (numbers(HELLO, flags=1), f"{HELLO}: it is encrypted"),
    "strongly encrypted": (numbers(HELLO, flags=0x41), f"{HELLO}: it is encrypted"),
    "patched data": (numbers(HELLO, flags=0x20), f"{HELLO}: it has unknown flags"),
    "another method": (numbers(HELLO, method=99), f"{HELLO}: its compression method 99"),
    "another version": (numbers(HELLO, version=63), f"{HELLO}: it needs a newer zip"),
    "another version in the header": (numbers(HELLO, record=False, version=63), f"{HELLO}: it needs a newer zip"),
    "another disk": (numbers(HELLO, disk=1), f"{HELLO}: it needs .* another disk"),
    "a link": (numbers(HELLO, mode=0o120777), f"{HELLO}: it would unpack as a link"),
    "a device": (numbers(HELLO, mode=0o020666), f"{HELLO}: it would unpack as .* a special file"),
    "called a directory": (numbers(HELLO, mode=0o040700), f"{HELLO}: it is marked as a directory"),
    "a directory's content": (added("20_webdav/dir/"), "20_webdav/dir/: it is a directory with content"),
    "another header": (numbers(HELLO, record=False, method=0), f"{HELLO}: its header disagrees"),
    "other sizes in the header": (numbers(HELLO, record=False, size=5), f"{HELLO}: its header disagrees"),
    "another CRC": (numbers(HELLO, crc=5), f"{HELLO}: its content is damaged \\(CRC-32\\)"),
    "a size of 4 GB": (numbers(HELLO, size=0xFFFF_FFFE), f"{HELLO}: it has 4,294,967,294 bytes, but the list says 250"),
    "a size that is missing": (
        numbers(HELLO, size=0xFFFF_FFFF),
        "zip: entry .* of its directory: a size or an offset is missing",
    ),
    "compressed more": (numbers(HELLO, compressed=3), f"{HELLO}: its content is cut off"),
    "compressed less": (numbers(HELLO, compressed=200), f"{HELLO}: it overlaps the next entry"),
    "appended to an entry": (
        lambda snapshot: with_deflated(snapshot, "20_webdav/more", deflated_zeros(0) + b"x", size=0),
        "20_webdav/more: bytes follow its content",
    ),
    "compressed to the end of the file": (numbers(HELLO, compressed=10**9), f"{HELLO}: it overlaps the next entry"),
    "descriptors that are none": (numbers(HELLO, flags=8), f"{HELLO}: its data descriptor disagrees"),
    "elsewhere": (numbers(NOISE, offset=10**9), f"{NOISE}: it is not between the previous entry and"),
    "overlapping": (overlapping, f"{NOISE}: it is not between the previous entry and"),
    "an extra field": (
        with_field(0x7075),
        "zip: entry 23 of its directory: .* unknown extra field .0x7075.",
    ),
    # Entries with dangerous names.
    "absolute": (added("/etc/passwd"), "/etc/passwd: its name could unpack elsewhere"),
    "upwards": (added("20_webdav/../../x"), "20_webdav/../../x: its name could unpack elsewhere"),
    "upwards on Windows": (added("20_webdav/..\\x"), r"20_webdav/..\\x: its name could unpack elsewhere"),
    "a drive": (added("C:x"), "C:x: its name could unpack elsewhere"),
    "a name of nothing": (added("20_webdav//x"), "20_webdav//x: its name could unpack elsewhere"),
    "blank at the end": (added("20_webdav/.. /x"), r"20_webdav/\.\. /x: its name could unpack elsewhere"),
    "control characters": (added("20_webdav/\x1b[31m\u202e\nx"), r"20_webdav/\\x1b\[31m\\u202e\\nx: its name could"),
    "like a sentence of ours": (
        parts(lambda parts: parts.contents.update({"complete: 1 entries": b""})),
        r"complete\\x3a 1 entries: it is not in the list",
    ),
    # Damaged manifests.
    "no manifest": (
        lambda snapshot: snapshot.replace(b"manifest.json", b"manifest.jsom"),
        f"{MANIFEST}: it is missing",
    ),
    "a manifest that is no JSON": (reads(b"{"), f"{MANIFEST}: it is not JSON"),
    "a manifest that is no text": (reads(b"\xff"), f"{MANIFEST}: it is not JSON"),
    "a manifest that is a list": (reads(b"[]"), f"{MANIFEST}: it is not a JSON object"),
    "a deep manifest": (reads(b"[" * 60_000), f"{MANIFEST}: it is not JSON"),
    "a huge number": (reads(b'{"bytes":' + b"9" * 60_000 + b"}"), f"{MANIFEST}: it is not JSON"),
    "a long manifest": (reads(b" " * 70_000), f"{MANIFEST}: it is longer than"),
    "a later version": (says(export_version=3), f"{MANIFEST}: its export_version is not 2"),
    "no version": (says(export_version=None), f"{MANIFEST}: its export_version is not 2"),
    "no cell": (says(cell=None), f"{MANIFEST}: its cell is missing"),
    "no text": (says(unit_url=5), f"{MANIFEST}: its unit_url is not valid"),
    "no export": (says(export_id=None), f"{MANIFEST}: its export_id is missing"),
    "a negative epoch": (says(epoch=-1), f"{MANIFEST}: its epoch is not"),
    "no date": (says(create_date=10**18), f"{MANIFEST}: its create_date is not a date"),
    "a date of text": (says(create_date="2026"), f"{MANIFEST}: its create_date is not"),
    "another count": (says(entry_count=5), f"{MANIFEST}: it says 5 entries, but the list has 21"),
    "no count": (says(entry_count=True), f"{MANIFEST}: its entry_count is not"),
    "a huge count": (says(entry_count=10**4000), f"{MANIFEST}: its entry_count is not"),
    "other bytes": (says(bytes=2**62), f"{MANIFEST}: it says 4,611,686,018,427,387,904 bytes, but the list has "),
    "another hash": (says(entries_sha256="0" * 64), f"{ENTRIES}: its content differs from what the manifest says"),
    "no hash": (says(entries_sha256="0" * 63), f"{MANIFEST}: its entries_sha256 is not"),
    # Damaged lists of entries.
    "no list": (lambda snapshot: snapshot.replace(b"entries.ndjson", b"entries.ndjsom"), f"{ENTRIES}: it is missing"),
    "a list of nothing": (lists(b"\n"), f"{ENTRIES}: line 1: it is not JSON"),
    "a deep list": (lists(b"[" * 100_000), f"{ENTRIES}: line 1: it is not JSON"),
    "a list of lists": (lists(b"[]\n"), f"{ENTRIES}: line 1: it is not a JSON object"),
    "a long line": (lists(b" " * 5_000_000), f"{ENTRIES}: line 1: it is longer than 1,048,576 bytes"),
    "a line without a name": (lists(b"{}\n"), f"{ENTRIES}: line 1: its name is missing"),
    "a size of text": (lists(LINE.replace(b"1,", b'"1",') % GOOD_HASH), f"{ENTRIES}: line 1: its size is not"),
    "a negative size": (lists(LINE.replace(b"1,", b"-1,") % GOOD_HASH), f"{ENTRIES}: line 1: its size is not"),
    "a broken size": (lists(LINE.replace(b"1,", b"1.5,") % GOOD_HASH), f"{ENTRIES}: line 1: its size is not"),
    "a hash of nothing": (lists(LINE % b""), f"{ENTRIES}: line 1: its sha256 is not"),
    "no time": (lists(LINE.replace(b'"mtime"', b'"time"') % GOOD_HASH), f"{ENTRIES}: line 1: its mtime is missing"),
    "a skipped nothing": (lists(b'{"name":"x","skipped":null}'), f"{ENTRIES}: line 1: its skipped is not"),
    "half a character": (lists(LINE.replace(b'"x"', b'"\\ud800"') % GOOD_HASH), r"\\ud800: it is missing"),
    "listed twice": (
        parts(lambda parts: parts.list(HELLO)),
        f"{HELLO}: it is in the list more than once",
    ),
    "listed itself": (parts(lambda parts: parts.list(MANIFEST)), f"{MANIFEST}: it is in the list more than once"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_ends_with_1(snapshot: bytes, file: Path, damage: str) -> None:
    make, expected = DAMAGES[damage]
    damaged = make(snapshot)
    assert damaged != snapshot
    file.write_bytes(damaged)
    status, lines = judged(file)
    assert status == 1
    assert any(re.match(expected, line) for line in lines), lines
    assert all(line.isprintable() for line in lines)


@pytest.mark.timeout(120)
def test_any_changed_byte_is_reported_or_every_content_is_the_same(snapshot: bytes, file: Path) -> None:
    contents = contents_of(snapshot)
    chance = random.Random(71)
    unnoticed = 0

    for _ in range(800):
        position = chance.randrange(len(snapshot))
        damaged = flipped(snapshot, position, chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)]))
        file.write_bytes(damaged if chance.random() < 0.9 else snapshot[:position])

        status, lines = judged(file)
        if status == 0:
            unnoticed += 1
            assert contents_of(file.read_bytes()) == contents, position
        else:
            assert status == 1
            assert not lines[0].startswith("complete")

    # Some changes go unnoticed: those of times, and of other bytes that belong to no entry's content. They must be few.
    assert 0 < unnoticed < 200


@pytest.mark.process
def test_anything_at_all_ends_with_a_clear_problem(snapshot: bytes, file: Path) -> None:
    chance = random.Random(72)
    for _ in range(300):
        damaged = bytearray(snapshot)
        for _ in range(chance.randrange(1, 20)):
            start = chance.choice([chance.randrange(len(damaged)), -chance.randrange(1, 2500)])
            piece = chance.choice([chance.randbytes(chance.randrange(1, 9)), b"\xff" * 8, b"\0" * 8, b""])
            damaged[start : start + chance.randrange(9)] = piece
        file.write_bytes(damaged)

        status, lines = judged(file)

        assert status in (0, 1)
        assert status == 1 or contents_of(file.read_bytes()) == contents_of(snapshot)
        assert all(line.isprintable() for line in lines)


def test_snapshots_of_other_zip_writers_are_complete_too(snapshot: bytes, file: Path) -> None:
    parts = Parts.of(snapshot).seal()
    file.write_bytes(parts.zipped(method=zipfile.ZIP_STORED))
    assert judged(file)[0] == 0

    # A pipe can't be rewound, so the zip writer puts the sizes behind the data.
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as target:
        parts.zipped(target)
        target.close()
        streamed = source.read()

    assert streamed[6] == 8
    file.write_bytes(streamed)
    assert judged(file)[0] == 0
    file.write_bytes(flipped(streamed, header_at(streamed, HELLO) - 2))
    assert judged(file)[0] == 1


def test_at_most_twenty_problems_of_a_file_are_named(snapshot: bytes, file: Path) -> None:
    def change(parts: Parts) -> None:
        for number in range(1234):
            parts.list(f"20_webdav/{number}")

    file.write_bytes(changed(snapshot, change))
    status, lines = judged(file)
    assert status == 1
    assert lines[:20] == [f"20_webdav/{number}: it is missing" for number in range(20)]
    assert lines[20:] == ["and 1,214 more"]


def test_each_file_is_reported_and_one_incomplete_file_decides_the_status(
    snapshot: bytes, file: Path, tmp_path: Path
) -> None:
    file.write_bytes(snapshot)
    cut = tmp_path / os.fsdecode(b"c\xff\x1b[2Jut.zip")
    cut.write_bytes(snapshot[:-1])

    done = run(cut, file, tmp_path / "gone.zip", file, CELLEXPORT_UNIT_DIR="/nowhere", CELLEXPORT_LOG_FORMAT="none")

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["zip", "complete", "file", "complete"]
    assert lines[0].startswith(f"{tmp_path}/c\\udcff\\x1b[2Jut.zip: zip: its end record is missing")
    assert lines[2] == f"{tmp_path}/gone.zip: file: it can't be read: No such file or directory"
    assert not done.stderr


@pytest.mark.process
def test_a_path_that_is_no_regular_file_is_reported_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    done = run(tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "loop")
    assert done.returncode == 1
    what = ["it is not a regular file"] * 3 + ["it can't be read: Too many levels of symbolic links"]
    assert [line.split(": ", 2)[2] for line in done.stdout.splitlines()] == what


@needs_root
def test_an_unreadable_file_is_reported(snapshot: bytes, file: Path) -> None:
    file.write_bytes(snapshot)
    file.chmod(0)
    done = run(file, before=("/usr/bin/setpriv", "--bounding-set=-dac_override,-dac_read_search"))
    assert (done.returncode, done.stdout) == (1, f"{file}: file: it can't be read: Permission denied\n")


@pytest.mark.process
def test_no_file_is_a_mistake() -> None:
    for arguments in ([], ["--what"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: cellexport-exporter verify [OPTIONS] FILE..." in done.stderr
    assert "Exit status: 0 if all snapshots are complete" in run("--help").stdout


def test_names_are_shown_in_any_encoding(snapshot: bytes, file: Path) -> None:
    name = "20_webdav/d/名前 %2541"
    file.write_bytes(changed(snapshot, lambda parts: parts.contents.pop(name)))
    assert run(file, PYTHONIOENCODING="utf-8").stdout == f"{file}: {name}: it is missing\n"
    assert run(file, PYTHONIOENCODING="latin-1").stdout == f"{file}: 20_webdav/d/\\u540d\\u524d %2541: it is missing\n"


def traced(path: Path) -> tuple[list[Problem | Complete], Tally, int]:
    """Check a file. Return the findings, the tally of the bytes read, and the peak of Python's memory in bytes."""
    tally = Tally()
    tracemalloc.start()
    try:
        found = list(findings_in(path, tally, lambda: None))
        return found, tally, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_entry_that_inflates_beyond_its_size_is_refused_early(snapshot: bytes, file: Path) -> None:
    name = "20_webdav/bomb"
    # Deflated zeros that inflate to four gibibytes.
    bomb = deflated_zeros(256)
    file.write_bytes(with_deflated(snapshot, name, bomb, size=1_000_000))

    found, tally, memory = traced(file)
    assert found == [Problem(name, "it is longer than its 1,000,000 bytes")]
    assert tally.bytes_done < 1_100_000
    assert memory < 5_000_000

    # An entry that overlaps the next one must be refused early too. With overlaps, zip bombs reach many times the usual
    # ratio of compression.
    over = with_deflated(snapshot, name, bomb[:-2], size=0xFFFF_FFFE)
    file.write_bytes(patched(over, name, compressed=len(bomb)))

    found, tally, _ = traced(file)
    assert found == [Problem(name, "it overlaps the next entry")]
    assert tally.bytes_done < 1_000_000

    # A list of entries that inflates to a single line of 256 MiB must be refused early too.
    parts = Parts.of(snapshot)
    parts.manifest["entries_sha256"] = hashlib.sha256(bytes(16 * BLOCK)).hexdigest()
    parts.raw[ENTRIES] = deflated_zeros(16)
    stored = patched(parts.zipped(method=zipfile.ZIP_STORED), ENTRIES, method=8, size=16 * BLOCK, crc=zeros_crc(16))
    file.write_bytes(stored)
    found, tally, memory = traced(file)
    assert found == [Problem(ENTRIES, "line 1: it is longer than 1,048,576 bytes")]
    assert memory < 10_000_000


def zeros_crc(blocks: int) -> int:
    crc = 0
    for _ in range(blocks):
        crc = zlib.crc32(bytes(BLOCK), crc)
    return crc


@pytest.mark.process
def test_memory_does_not_grow_with_a_file(snapshot: bytes, file: Path) -> None:
    digest = hashlib.sha256()
    for _ in range(16):
        digest.update(bytes(BLOCK))
    zeros = deflated_zeros(16)
    declared = {"crc": zeros_crc(16), "size": 16 * BLOCK}
    file.write_bytes(with_deflated(snapshot, "20_webdav/zeros", zeros, sha256=digest.hexdigest(), **declared))
    found, _, memory = traced(file)
    assert [type(finding) for finding in found] == [Complete]
    assert memory < 5_000_000


def with_many(snapshot: bytes, count: int) -> bytes:
    """Return the snapshot with `count` more entries, whose names have more than 200 characters."""

    def change(parts: Parts) -> None:
        for number in range(count):
            parts.add(f"20_webdav/{number:0200}", b"")

    return changed(snapshot, change)


def test_memory_grows_little_with_each_entry(snapshot: bytes, file: Path) -> None:
    file.write_bytes(with_many(snapshot, 1000))
    _, _, few = traced(file)
    file.write_bytes(with_many(snapshot, 6000))
    found, _, many = traced(file)
    assert [type(finding) for finding in found] == [Complete]
    assert many - few < 5000 * 250


@pytest.mark.long
@pytest.mark.timeout(120)
def test_there_may_be_more_entries_than_the_usual_end_of_a_zip_can_count(snapshot: bytes, file: Path) -> None:
    large = with_many(snapshot, 66_000)
    assert large[-42:-38] == b"PK\6\7"
    file.write_bytes(large)
    assert judged(file)[0] == 0

    # Change each byte of the zip's two end records (Zip64 and usual) in turn, except their version numbers.
    for back in (*range(98, 86, -1), *range(82, 0, -1)):
        with file.open("r+b") as opened:
            opened.seek(-back, os.SEEK_END)
            opened.write(bytes([large[-back] ^ 0xFF]))
            opened.flush()
            [finding] = findings_in(file, Tally(), lambda: None)
            assert isinstance(finding, Problem)
            assert finding.part == "zip"
            opened.seek(-back, os.SEEK_END)
            opened.write(large[-back : len(large) - back + 1])


@pytest.fixture
def long_check(snapshot: bytes, file: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start `python -m server.exporter verify` on a snapshot that takes long to check, twenty times in one command.

    Yield its process, and the terminal that shows its standard error.
    """
    file.write_bytes(with_deflated(snapshot, "20_webdav/zeros", deflated_zeros(255), size=255 * BLOCK))
    terminal, given = pty.openpty()
    command = [sys.executable, "-m", "server.exporter", "verify", *[str(file)] * 20]

    def heed_signals() -> None:
        # If a shell runs the tests in the background, they ignore SIGINT, and the new process would inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, env={}, stdout=subprocess.PIPE, stderr=given, preexec_fn=heed_signals) as process:
        os.close(given)
        try:
            yield process, terminal
        finally:
            process.kill()
            os.close(terminal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_check_shows_how_far_it_is_and_is_ended_by_a_signal(
    long_check: tuple[subprocess.Popen[bytes], int], number: signal.Signals
) -> None:
    process, terminal = long_check
    shown = b""
    while not re.search(rb"snap\.zip \[#+\.+\] +[1-9]\d?% 2\d/24 entries", shown):
        try:
            shown += os.read(terminal, 1000)
        except OSError:
            pytest.fail(f"verify ended early, with status {process.wait(60)}: {shown[-500:]!r}")

    process.send_signal(number)
    assert process.wait(60) == -number

    os.set_blocking(terminal, False)
    rest = read_all(terminal)
    assert rest.endswith(b"\r\x1b[K") or number != signal.SIGINT
    assert not re.search(rb"Traceback|Aborted|Error", rest)
    assert process.stdout
    assert process.stdout.read() == b""


def read_all(descriptor: int) -> bytes:
    """Return the bytes that can be read from a terminal without waiting."""
    found = b""
    try:
        while more := os.read(descriptor, 1000):
            found += more
    except OSError:
        # The terminal has no more bytes for now, or the process that wrote to it has exited.
        pass
    return found


@needs("unzip")
def test_unzip_agrees(snapshot: bytes, file: Path) -> None:
    file.write_bytes(snapshot)
    assert subprocess.run(["unzip", "-tqq", file], capture_output=True, check=False).returncode == 0
