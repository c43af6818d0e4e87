"""Writes the snapshot of a cell: a streamed zip in the layout that Personium reads, with a list of its entries.

00_manifest.json      the version, the cell, the export, and the hash of the list
00_entries.ndjson     one line for each entry: name, size, sha256, mtime; or name, and why the entry was skipped
10_odata/             the cell's data
20_webdav/            the cell's files
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from server.exporter import names
from server.exporter.archive import Archive, Stop
from server.exporter.tally import Tally
from server.exporter.walk import Skipped, SourceError, walk

EXPORT_VERSION = 2

# The files of the cell's data, without their extension. A snapshot has all of them; a missing one is exported as empty.
_ODATA = (
    "10_box",
    "11_account",
    "12_extcell",
    "20_role",
    "21_rule",
    "22_relation",
    "23_sentmessage",
    "24_receivedmessage",
    "30_extrole",
    "40_entitytype",
    "41_complextype",
    "50_property",
    "51_complextypeproperty",
    "60_associationend",
    "70_userdata",
    "80_link",
)
# The entries of every snapshot, apart from the manifest and the list.
ALWAYS = ("10_odata/00_cell.json", *(f"10_odata/{stem}.pjson" for stem in _ODATA))


class StoppedError(Exception):
    """Raised by the argument `stop` of `count` and `write` to end their work, because the exporter shuts down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The cell of a snapshot, and the values for its manifest."""

    cell: str
    owner: str
    unit_url: str
    export_id: str
    epoch: int
    directory: Path


def count(subject: Subject, tally: Tally, stop: Stop) -> None:
    """Count the entries and bytes of the cell into the totals of the tally, which grow meanwhile.

    Args:
        stop: called often; raises `StoppedError` to end the work.

    Raises:
        SourceError: if a file or directory of the cell can't be read.
        StoppedError: raised by `stop`.
    """
    tally.entries_total = len(_ODATA) + 1
    with _opened(subject.directory, "webdav") as root:
        for found in walk(root) if root is not None else ():
            stop()
            tally.entries_total += 1
            tally.bytes_total += 0 if found.skipped else found.size


def write(subject: Subject, file: BinaryIO, spool: Path, tally: Tally, stop: Stop) -> None:
    """Write the snapshot to a file, and count the written entries and bytes into the tally.

    Args:
        spool: a directory with room for a temporary file that holds the list of entries.
        stop: called often; raises `StoppedError` to end the work.

    Raises:
        SourceError: if a file or directory of the cell can't be read.
        SourceChangedError: if a file of the cell became shorter while it was read.
        StoppedError: raised by `stop`.
        OSError: if the snapshot can't be written.
    """
    head = {
        "export_version": EXPORT_VERSION,
        "unit_url": subject.unit_url,
        "cell": subject.cell,
        "export_id": subject.export_id,
        "epoch": subject.epoch,
    }
    with tempfile.TemporaryFile(dir=spool) as entries:
        archive = Archive(file, entries, tally, stop)
        try:
            _write_odata(subject, archive)
            _write_webdav(subject, archive)
            archive.finish(head)
        except BaseException:
            archive.abandon()
            raise


def _write_odata(subject: Subject, archive: Archive) -> None:
    head = {"_id": subject.cell, "_source": {"Name": subject.cell, "Owner": subject.owner}}
    archive.add_bytes("10_odata/00_cell.json", json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode())
    missing = [f"{stem}.pjson" for stem in _ODATA]
    with _opened(subject.directory, "odata") as root:
        for found in walk(root) if root is not None else ():
            name = "10_odata/" + names.entry_name(found.path)
            if found.path not in missing:
                archive.skip(name, "10_odata/" + found.path, Skipped.UNKNOWN)
                continue
            missing.remove(found.path)
            # The export must fail if a data file can't be read: an empty file in the snapshot would look like no data.
            skipped = found.skipped or archive.add_file(name, found)
            if skipped is not None:
                raise SourceError(f"odata/{found.path}: {skipped}")
    for path in missing:
        archive.add_bytes(f"10_odata/{path}", b"")


def _write_webdav(subject: Subject, archive: Archive) -> None:
    with _opened(subject.directory, "webdav") as root:
        for found in walk(root) if root is not None else ():
            name = "20_webdav/" + names.entry_name(found.path)
            original = "20_webdav/" + found.path
            skipped = found.skipped
            if len(name.encode()) >= names.LONGEST:
                skipped = Skipped.NAME_TOO_LONG
            elif skipped is None and found.is_directory:
                archive.add_directory(name, original, found)
            elif skipped is None:
                skipped = archive.add_file(name, found, original)
            if skipped is not None:
                archive.skip(name, original, skipped)


@contextmanager
def _opened(directory: Path, name: str) -> Iterator[int | None]:
    """Yield the descriptor of a directory of the cell, opened without following links, or None if it is missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        cell = os.open(directory, flags)
        try:
            opened = os.open(name, flags, dir_fd=cell)
        except FileNotFoundError:
            opened = None
        finally:
            os.close(cell)
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror}") from error
    try:
        yield opened
    finally:
        if opened is not None:
            os.close(opened)
