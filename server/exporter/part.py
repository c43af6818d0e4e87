"""Parts: unfinished snapshots. Removing a part keeps the exporter that writes it from publishing the snapshot.

A part is the file `{Name}.{export id}.{epoch}.part`, locked by the exporter that writes it. Publishing makes a hard
link to the part with the final name, `{Name}.zip`. The link never replaces a file, and fails if the part was removed.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.[0-9a-f]+\.(?P<epoch>[0-9]+)\.part", re.ASCII)


class NameTakenError(Exception):
    """Raised when the cell already has a snapshot with the name of the new one."""


class FencedError(Exception):
    """Raised when the server or a newer exporter has removed the part, so that this exporter can't publish it."""


class Part:
    """An unfinished snapshot. The exporter writes it to `file`."""

    def __init__(self, path: Path, target: Path, file: BinaryIO) -> None:
        self._path = path
        self._target = target
        self.file = file

    @property
    def directory(self) -> Path:
        return self._path.parent

    def sync(self) -> None:
        """Flush the content to the disk, so that it survives a power cut."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Make a link to the part with the snapshot's final name. Call `sync` first.

        Raises:
            NameTakenError: if a file with the final name exists. That file is not changed.
            FencedError: if the part was removed.
            OSError: if the link can't be made, or can't be written to disk.
        """
        try:
            os.link(self._path, self._target, follow_symlinks=False)
        except FileExistsError as error:
            raise NameTakenError from error
        except FileNotFoundError as error:
            raise FencedError from error
        try:
            _sync_directory(self.directory)
        except OSError:
            # The link might not survive a power cut, so the snapshot must not count as published.
            self._target.unlink()
            raise


def part_name(name: str, export_id: str, epoch: int) -> str:
    """Return the file name of a part. The name contains the export's id and the lease's epoch, a number that rises with
    each lease on the cell: so `fence` finds the parts of older leases.
    """
    return f"{name}.{export_id}.{epoch}.part"


def locked(path: Path) -> int:
    """Create the file of a part, lock it, and return its descriptor. If another exporter sweeps the file away before it
    is locked, create it again.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)


def parts_in(directory: Path) -> list[Path]:
    """Return the parts in a cell's snapshot directory. Raise OSError if the directory can't be read."""
    return [path for path in directory.iterdir() if path.name.endswith(".part")]


def epoch_of(part: Path) -> int:
    """Return the epoch of the lease in a part's name, or 0 if the name has another form."""
    match = _PART.fullmatch(part.name)
    return int(match["epoch"]) if match else 0


def fence(directory: Path, epoch: int) -> None:
    """Remove every part of an older lease, and every other part that no living exporter has locked.

    Args:
        directory: the cell's snapshot directory.
        epoch: the epoch of the caller's lease.

    Raises:
        FencedError: if a living exporter has locked a part that is not older. The server gave out that exporter's lease
            before its store went back to an older state.
    """
    for path in parts_in(directory):
        if not _PART.fullmatch(path.name):
            continue
        if epoch_of(path) < epoch:
            path.unlink(missing_ok=True)
        elif not sweep(path) and path.exists():
            raise FencedError


def sweep(path: Path) -> bool:
    """Remove a part, unless an exporter has locked it or it can't be opened. Return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
