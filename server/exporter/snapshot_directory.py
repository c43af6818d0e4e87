"""The snapshot directory of a unit, with three kinds of files for each cell in `{root}/{cell}/`.

- `{Name}.{export id}.{epoch}.part` is an unfinished snapshot, locked by the exporter that writes it.
- `{Name}.zip` is a complete snapshot, made as a hard link to the part. So it appears complete, and replaces no file.
- `{Name}.error` is an error note: it says why the export left no zip.

The part is also a fence against its own exporter. When the exporter's lease has expired, the server or the next
exporter removes the part, and then the link that would publish the snapshot fails. So an exporter that wakes up from a
pause can't publish the snapshot of an export that has ended.
"""

import errno
import json
import logging
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from server.exporter.names import MANIFEST
from server.exporter.part import NameTakenError, Part, epoch_of, fence, locked, part_name, parts_in, sweep

# How many bytes of a manifest are read.
_MANIFEST_LIMIT = 64 * 1024

_log = logging.getLogger(__name__)


def is_out_of_space(error: OSError) -> bool:
    """Return whether an error means that the file system, a quota or a size limit leaves no space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SnapshotDirectoryError(Exception):
    """Raised when the snapshot directory can't be used. The text names the directory and the reason."""


class SnapshotDirectory:
    """The snapshot directory of a unit. Every method may raise OSError.

    Args:
        root: the directory `snapshots` of the unit; created when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Create the snapshot directory if it is missing, and check that files can be written there.

        Raises:
            SnapshotDirectoryError: if files can't be written. A lack of space raises nothing: it may pass.
        """
        try:
            _make_directory(self._root)
            with tempfile.TemporaryFile(dir=self._root):
                pass
        except OSError as error:
            if not is_out_of_space(error):
                raise SnapshotDirectoryError(f"{self._root} can't be used for snapshots: {error.strerror}.") from error

    def exists(self, cell: str, name: str) -> bool:
        """Return whether the cell has a snapshot of that name."""
        return os.path.lexists(self._zip(cell, name))

    @contextmanager
    def part(self, cell: str, name: str, export_id: str, epoch: int) -> Iterator[Part]:
        """Yield a new part, after removing the parts of older exporters of the cell, which can't publish from then on.

        The part is removed when the context ends, whether it was published or not.

        Raises:
            NameTakenError: if a snapshot of that name exists already.
            FencedError: if a newer exporter of the cell is writing.
        """
        directory = self._directory(cell)
        fence(directory, epoch)
        if self.exists(cell, name):
            raise NameTakenError
        path = directory / part_name(name, export_id, epoch)
        descriptor = locked(path)
        try:
            with os.fdopen(descriptor, "w+b", buffering=1024 * 1024) as file:
                self._error(cell, name).unlink(missing_ok=True)
                try:
                    yield Part(path, self._zip(cell, name), file)
                finally:
                    path.unlink(missing_ok=True)
                    # Closing flushes the buffer to the removed file, so a failure does no harm.
                    with suppress(OSError):
                        file.close()
        finally:
            # Needed if `fdopen` failed because there was no memory for the buffer.
            path.unlink(missing_ok=True)

    def newest_epoch(self, cell: str) -> int:
        """Return the highest epoch of the cell's parts, or 0 if there is no part or the directory can't be read."""
        try:
            return max((epoch_of(path) for path in parts_in(self._root / cell)), default=0)
        except OSError:
            return 0

    def seal(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Remove the part of a dead exporter. Return whether the exporter had published its snapshot before.

        Without a snapshot, write an error note with the reason.
        """
        try:
            (self._root / cell / part_name(name, export_id, epoch)).unlink(missing_ok=True)
            if self._published_by(cell, name, export_id, epoch):
                return True
            # Write no error note beside a snapshot of that name: another export may have made the snapshot.
            if not self.exists(cell, name):
                self.note(cell, name, "INTERRUPTED", reason)
        except OSError as error:
            # The directory is missing, or the server can't access it. The next exporter of the cell removes the part.
            _log.warning("snapshot directory unavailable", extra={"cell": cell, "error": str(error)})
        return False

    def note(self, cell: str, name: str, result: str, reason: str) -> None:
        """Write `{Name}.error`: an error body with the reason why there is no snapshot."""
        verb = "was interrupted" if result == "INTERRUPTED" else "failed"
        body = {
            "code": "PR500-CX-0001",
            "message": {"lang": "en", "value": f"Cell export {verb}. [{reason}]"},
        }
        path = self._directory(cell) / self._error(cell, name).name
        fresh = path.with_suffix(".error.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(body, file, separators=(",", ":"))
        fresh.replace(path)

    def sweep(self) -> int:
        """Remove the parts that no exporter has locked. Return their number."""
        if not self._root.is_dir():
            return 0
        swept = 0
        for entry in os.scandir(self._root):
            if entry.is_dir(follow_symlinks=False):
                swept += sum(sweep(path) for path in parts_in(Path(entry.path)))
        return swept

    def _directory(self, cell: str) -> Path:
        """Return the directory of a cell's snapshots. Create it if it is missing."""
        _make_directory(self._root)
        _make_directory(self._root / cell)
        return self._root / cell

    def _published_by(self, cell: str, name: str, export_id: str, epoch: int) -> bool:
        """Return whether the snapshot of that name exists, and its manifest names this export and this lease."""
        try:
            descriptor = os.open(self._zip(cell, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with os.fdopen(descriptor, "rb") as file:
            manifest = _manifest(file) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        return isinstance(manifest, dict) and (manifest.get("export_id"), manifest.get("epoch")) == (export_id, epoch)

    def _zip(self, cell: str, name: str) -> Path:
        return self._root / cell / f"{name}.zip"

    def _error(self, cell: str, name: str) -> Path:
        return self._root / cell / f"{name}.error"


def _manifest(file: BinaryIO) -> object:
    """Return the manifest of a zip, or None for any other file."""
    try:
        with zipfile.ZipFile(file) as snapshot, snapshot.open(MANIFEST) as member:
            return json.loads(member.read(_MANIFEST_LIMIT))
    except Exception:
        return None


def _make_directory(path: Path) -> None:
    """Create a directory if it is missing. Refuse a link, which could redirect the snapshots to any place."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
