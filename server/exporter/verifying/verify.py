"""Checks that a snapshot is complete, by its own manifest and list, and finds the problems.

The file may be damaged in any way, or be made to do harm. It is read in pieces. Memory grows only by a digest and a
number for each entry. No entry is inflated beyond the size that is stated for it.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.exporter import names
from server.exporter.names import ENTRIES, MANIFEST
from server.exporter.snapshot import ALWAYS
from server.exporter.tally import Tally
from server.exporter.verifying.file_window import DamagedError, Window, opened
from server.exporter.verifying.listing import MANIFEST_LIMIT, Manifest, read_lines, read_manifest
from server.exporter.verifying.zip_directory import Directory, Record
from server.exporter.verifying.zip_entry import content


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a file. `part` is an entry's name, `zip` (the structure), or `file` (it can't be read)."""

    part: str
    what: str


@dataclass(frozen=True, slots=True)
class Complete:
    """The result for a snapshot without a problem."""

    manifest: Manifest


def verify(path: Path, tally: Tally, tick: Callable[[], None]) -> Iterator[Problem | Complete]:
    """Yield every problem of a file or, if there is none, one `Complete` at the end.

    No content of the file makes this function raise. Only an exception of `tick` passes through.

    Args:
        tally: counts the entries and bytes that were checked.
        tick: called often, for example to draw a progress bar.
    """
    try:
        with opened(path) as (window, data):
            try:
                yield from _Check(window, data, tally, tick).run()
            except DamagedError as error:
                yield Problem("zip", str(error))
    except DamagedError as error:
        yield Problem("file", str(error))
    except OSError as error:
        yield Problem("file", f"it can't be read: {error.strerror}")


class _Check:
    """A check of one file. Methods that yield problems raise `DamagedError` if the check can't continue."""

    def __init__(self, window: Window, data: Window, tally: Tally, tick: Callable[[], None]) -> None:
        self._data = data
        self._directory = Directory(window)
        self._tally = tally
        self._tick = tick
        # The position of each record in the zip's directory, by the digest of the record's name, because names may be
        # long. A position is inverted (~) when the list of entries has named the record.
        self._index: dict[bytes, int] = {}

    def run(self) -> Iterator[Problem | Complete]:
        is_complete = True
        for finding in self._findings():
            if isinstance(finding, Problem):
                is_complete = False
            elif not is_complete:
                return
            yield finding

    def _findings(self) -> Iterator[Problem | Complete]:
        yield from self._read_directory()
        part = MANIFEST
        try:
            manifest = self._read_manifest()
            part = ENTRIES
            yield from self._read_list(manifest)
        except DamagedError as error:
            yield Problem(part, str(error))
            return
        yield from self._unlisted()
        yield Complete(manifest)

    def _read_directory(self) -> Iterator[Problem]:
        last, size, ordered = -1, 0, True
        for record in self._directory.records():
            self._tick()
            if last < 0 < record.offset:
                raise DamagedError("there is data before its first entry")
            if last < record.offset < self._directory.start:
                last = record.offset
            else:
                ordered = False
                yield Problem(record.name, "it is not between the previous entry and the directory")
            size += record.size
            if not record.name_is_text:
                yield Problem(record.name, "its name is not UTF-8, or not marked as UTF-8")
            elif not names.is_safe(record.name):
                yield Problem(record.name, "its name could unpack elsewhere, or not at all, on some systems")
            if self._index.setdefault(_key(record.raw_name), record.position) != record.position:
                yield Problem(record.name, "it is in the zip more than once")
        if not ordered:
            raise DamagedError("its content was not checked, because entries could overlap")
        self._tally.entries_total, self._tally.bytes_total = self._directory.count, size

    def _read_manifest(self) -> Manifest:
        record = self._take(MANIFEST)
        if record.size > MANIFEST_LIMIT:
            raise DamagedError(f"it is longer than {MANIFEST_LIMIT:,} bytes")
        return read_manifest(b"".join(self._content(record)))

    def _read_list(self, manifest: Manifest) -> Iterator[Problem]:
        entries = self._take(ENTRIES)
        # The list is read twice: first to verify its hash, because no line can be trusted before.
        self._compare(entries, entries.size, manifest.entries_sha256, "the manifest")
        count, size, always = 0, 0, set(ALWAYS)
        for line in read_lines(self._content(entries)):
            if line.skipped:
                continue
            count += 1
            size += line.size
            always.discard(line.name)
            try:
                self._compare(self._take(line.name), line.size, line.sha256, "the list")
            except DamagedError as error:
                yield Problem(line.name, str(error))
            self._tally.entries_done += 1
        for stated, listed, unit in ((manifest.entry_count, count, "entries"), (manifest.bytes, size, "bytes")):
            if stated != listed:
                yield Problem(MANIFEST, f"it says {stated:,} {unit}, but the list has {listed:,}")
        for name in sorted(always):
            if _key(name.encode()) not in self._index:
                yield Problem(name, "it is missing, but every snapshot has it")

    def _unlisted(self) -> Iterator[Problem]:
        for position in self._index.values():
            if position >= 0:
                yield Problem(self._directory.record(position).name, "it is not in the list")

    def _take(self, name: str) -> Record:
        """Return the zip's record of a name in the list, once. Raise `DamagedError` if it is missing or was taken."""
        # A name in JSON may contain a lone surrogate. No name in a zip does, so the entry is then missing.
        key = _key(name.encode("utf-8", "surrogatepass"))
        position = self._index.get(key)
        if position is None:
            raise DamagedError("it is missing")
        if position < 0:
            raise DamagedError("it is in the list more than once")
        self._index[key] = ~position
        return self._directory.record(position)

    def _compare(self, record: Record, size: int, sha256: str, source: str) -> None:
        """Raise `DamagedError` unless an entry has the size and hash that `source` states."""
        if record.size != size:
            raise DamagedError(f"it has {record.size:,} bytes, but {source} says {size:,}")
        digest = hashlib.sha256()
        for chunk in self._content(record):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise DamagedError(f"its content differs from what {source} says (SHA-256)")

    def _content(self, record: Record) -> Iterator[bytes]:
        for chunk in content(self._data, record, self._directory.end_of(record)):
            self._tick()
            self._tally.bytes_done += len(chunk)
            yield chunk


def _key(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16).digest()
