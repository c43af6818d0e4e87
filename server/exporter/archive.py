"""The zip of a snapshot while it is written, and the list of the zip's entries.

Memory does not grow with the size of the files. It grows by less than a kilobyte for each file, because the module
`zipfile` keeps the zip's directory in memory until the end.
"""

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, BinaryIO, Protocol, cast

from server.exporter import names
from server.exporter.names import ENTRIES, MANIFEST
from server.exporter.tally import Tally
from server.exporter.walk import Found, Skipped, SourceChangedError, SourceError, open_file

_CHUNK = 256 * 1024
# The level of compression. Zips are a few percent larger than at zlib's default level, and take little more than half
# the time to write (docs/decisions.md).
_LEVEL = 4
# The file modes in zip entries. All entries share these two numbers: a million separate numbers would take 32 MB.
_FILE_MODE, _DIRECTORY_MODE = 0o100600 << 16, 0o040700 << 16
_DOS_DIRECTORY = 0x10
# The first and the last date that a zip entry can hold; other dates become one of them. The list of entries has the
# true time.
_FIRST_DATE, _LAST_DATE = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


Stop = Callable[[], None]


class Archive:
    """A zip that grows by one entry at a time. The `add` methods raise OSError if the zip can't be written.

    Args:
        entries: a temporary file, which holds the list of entries until `finish` adds the list to the zip.
        stop: called often; raises to end the work. The methods of the archive let the exception pass.
    """

    def __init__(self, file: BinaryIO, entries: IO[bytes], tally: Tally, stop: Stop) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._entries = entries
        self._entries_hash = hashlib.sha256()
        self._tally = tally
        self._stop = stop
        self._created = time.time_ns()
        self._count = 0
        self._bytes = 0

    def add_bytes(self, name: str, content: bytes) -> None:
        self._zip.writestr(_info(name, self._created, _FILE_MODE), content)
        self._list_entry(name, name, len(content), hashlib.sha256(content).hexdigest(), self._created)

    def add_directory(self, name: str, original: str, found: Found) -> None:
        """Add an entry for an empty directory. Only count any other directory as done: its files' names contain it."""
        if found.is_empty:
            info = _info(name + "/", found.mtime_ns, _DIRECTORY_MODE)
            info.external_attr |= _DOS_DIRECTORY
            info.compress_type = zipfile.ZIP_STORED
            self._zip.writestr(info, b"")
            self._list_entry(name + "/", original + "/", 0, hashlib.sha256().hexdigest(), found.mtime_ns)
        else:
            self._tally.entries_done += 1

    def add_file(self, name: str, found: Found, original: str | None = None) -> Skipped | None:
        """Add an entry with the content of a file, or return why the file must be skipped.

        Raises:
            SourceError: if the file can't be read.
            SourceChangedError: if the file became shorter while it was read.
        """
        opened = open_file(found)
        if isinstance(opened, Skipped):
            return opened
        with os.fdopen(opened, "rb", buffering=0) as source:
            status = os.fstat(opened)
            info = _info(name, status.st_mtime_ns, _FILE_MODE)
            info.file_size = status.st_size
            digest = hashlib.sha256()
            with self._zip.open(info, "w") as target:
                for chunk in _read(source, status.st_size, found.path):
                    self._stop()
                    digest.update(chunk)
                    target.write(chunk)
                    self._tally.bytes_done += len(chunk)
        self._list_entry(name, original or name, status.st_size, digest.hexdigest(), status.st_mtime_ns)
        return None

    def skip(self, name: str, original: str, why: Skipped) -> None:
        """Add a file or directory that is not in the zip to the list, with the reason."""
        self._list({"name": name, "skipped": str(why)} | _original(name, original))
        self._tally.entries_done += 1

    def finish(self, subject: dict[str, object]) -> None:
        """Add the list of entries and the manifest, and close the zip.

        Args:
            subject: the values of the manifest except counts, hashes and times, which this method adds.
        """
        self._entries.seek(0)
        with self._zip.open(_info(ENTRIES, self._created, _FILE_MODE), "w", force_zip64=True) as target:
            shutil.copyfileobj(self._entries, target, _CHUNK)
        manifest = subject | {
            "create_date": self._created // 1_000_000,
            "entry_count": self._count,
            "bytes": self._bytes,
            "entries_sha256": self._entries_hash.hexdigest(),
        }
        self._zip.writestr(_info(MANIFEST, self._created, _FILE_MODE), json.dumps(manifest, indent=1).encode())
        self._zip.close()

    def abandon(self) -> None:
        """Close an unfinished zip. `zipfile` then writes a directory to the part, but the caller discards the part."""
        with suppress(OSError, ValueError):
            self._zip.close()

    def _list_entry(self, name: str, original: str, size: int, sha256: str, mtime_ns: int) -> None:
        line = {"name": name, "size": size, "sha256": sha256, "mtime": mtime_ns // 1_000_000}
        self._list(line | _original(name, original))
        self._count += 1
        self._bytes += size
        self._tally.entries_done += 1

    def _list(self, line: dict[str, object]) -> None:
        self._stop()
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        self._entries_hash.update(text)
        self._entries.write(text)


def _original(name: str, original: str) -> dict[str, object]:
    return {} if name == original else {"original_name": names.shown(original)}


class _Leveled(Protocol):
    # Before Python 3.13 an entry that is streamed ignores the zip's compression level, and has no public attribute for
    # its own. So `_info` sets the private one.
    _compresslevel: int


def _info(name: str, mtime_ns: int, mode: int) -> zipfile.ZipInfo:
    # Not a subclass of ZipInfo: its million instances would reserve memory for attributes that nobody sets.
    info = zipfile.ZipInfo(name, _date(mtime_ns))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = mode
    cast(_Leveled, info)._compresslevel = _LEVEL
    return info


def _date(mtime_ns: int) -> tuple[int, int, int, int, int, int]:
    try:
        date = time.gmtime(mtime_ns // 1_000_000_000)[:6]
    except (OverflowError, ValueError, OSError):
        return _LAST_DATE if mtime_ns > 0 else _FIRST_DATE
    return min(max(date, _FIRST_DATE), _LAST_DATE)


def _read(source: IO[bytes], size: int, path: str) -> Iterator[bytes]:
    """Yield as many bytes as the file had when it was opened. Bytes appended since are left to the next snapshot."""
    while size:
        try:
            chunk = source.read(min(size, _CHUNK))
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        if not chunk:
            raise SourceChangedError(f"{path}: was cut short")
        size -= len(chunk)
        yield chunk
