"""The snapshot directory: `{root}/{cell}/{Name}.zip`, and what stands beside it while it is made or after it failed.

- `{Name}.{export id}.{epoch}.part` is being written, and locked by who writes it
- `{Name}.zip` is complete: it appears by a link to the part, which never replaces a file and is all or nothing
- `{Name}.error` says why there is no zip

The part's name is the fence: whoever gives up on an exporter takes its part away, and the link that would have
published it fails. So an exporter that was paused and wakes up can't publish what nobody waits for any more.
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

from server.exporter.part import NameTakenError, Part, epoch_of, fence, locked, part_name, parts_in, sweep

MANIFEST = "00_manifest.json"
# How a file system says that it has no room.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_MANIFEST_LIMIT = 64 * 1024

_log = logging.getLogger(__name__)


class AreaError(Exception):
    """Raised when the snapshot directory can't be used. Its text names it and says why."""


class SnapshotDirectory:
    """The snapshot directory of a unit. Every method may raise OSError.

    Args:
        root: the directory `snapshots` of the unit; made when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Make the directory if it is missing, and see whether snapshots can be written there.

        Raises:
            AreaError: if they can't, for whatever reason but want of space, which may be given again.
        """
        try:
            _make_directory(self._root)
            with tempfile.TemporaryFile(dir=self._root):
                pass
        except OSError as error:
            if error.errno not in FULL:
                raise AreaError(f"{self._root} can't be used for snapshots: {error.strerror}.") from error

    def exists(self, cell: str, name: str) -> bool:
        """Whether there is a snapshot of that name."""
        return os.path.lexists(self._zip(cell, name))

    @contextmanager
    def part(self, cell: str, name: str, export_id: str, epoch: int) -> Iterator[Part]:
        """A part to write, in a directory where no older exporter of the cell can publish any more.

        On leaving the context the part is gone, whether it was published or not.

        Raises:
            NameTakenError: if there is a snapshot of that name already.
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
                    # What the buffer still holds is for a file that is gone.
                    with suppress(OSError):
                        file.close()
        finally:
            # Also where there was no memory for the buffer.
            path.unlink(missing_ok=True)

    def newest_epoch(self, cell: str) -> int:
        """The highest epoch of all parts of the cell; 0 if there is none to be seen."""
        try:
            return max((epoch_of(path) for path in parts_in(self._root / cell)), default=0)
        except OSError:
            return 0

    def seal(self, cell: str, name: str, export_id: str, epoch: int, reason: str) -> bool:
        """Take a dead exporter's part away, and tell whether it had published before.

        If it had not, leave a note of the reason.
        """
        try:
            (self._root / cell / part_name(name, export_id, epoch)).unlink(missing_ok=True)
            if self._published_by(cell, name, export_id, epoch):
                return True
            # Beside somebody else's snapshot of that name it would be a lie.
            if not self.exists(cell, name):
                self.note(cell, name, "INTERRUPTED", reason)
        except OSError as error:
            # The directory is not ours to see, or none: the next exporter of the cell takes the part away.
            _log.warning("the snapshot directory can't be used", extra={"cell": cell, "error": str(error)})
        return False

    def note(self, cell: str, name: str, result: str, reason: str) -> None:
        """Leave `{Name}.error`: an error body that says why there is no snapshot."""
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
        """Remove the parts that nobody is writing, and return how many."""
        if not self._root.is_dir():
            return 0
        swept = 0
        for entry in os.scandir(self._root):
            if entry.is_dir(follow_symlinks=False):
                swept += sum(sweep(path) for path in parts_in(Path(entry.path)))
        return swept

    def _directory(self, cell: str) -> Path:
        """The directory of a cell's snapshots, made if it is missing."""
        _make_directory(self._root)
        _make_directory(self._root / cell)
        return self._root / cell

    def _published_by(self, cell: str, name: str, export_id: str, epoch: int) -> bool:
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
    """The manifest of a zip, or None if that is no snapshot of ours, whatever else it is."""
    try:
        with zipfile.ZipFile(file) as snapshot, snapshot.open(MANIFEST) as member:
            return json.loads(member.read(_MANIFEST_LIMIT))
    except Exception:
        return None


def _make_directory(path: Path) -> None:
    """Make a directory, unless there is one. A link is none: whoever put it there could have snapshots go anywhere."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
