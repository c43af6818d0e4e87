"""Parts: unfinished snapshots, whose file names fence off old exporters.

A part is the file `{Name}.{export id}.{epoch}.part`, locked by the exporter that writes it. Publishing links the part
to its final name. The link never replaces a file, and fails once the part was removed.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.[0-9a-f]+\.(?P<epoch>[0-9]+)\.part", re.ASCII)


class NameTakenError(Exception):
    """Raised when a snapshot of that name exists already."""


class FencedError(Exception):
    """Raised when the server or a newer exporter has removed the part, so that this exporter can't publish it."""


class Part:
    """An unfinished snapshot, written to `file`."""

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
        """Link the part to its final name. Call `sync` first.

        Raises:
            NameTakenError: if a file of that name exists. It is not changed.
            FencedError: if the part was removed.
            OSError: if the link can't be made, or not be made durable.
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
    """Return the file name of a part. It identifies the export and the lease (by its epoch)."""
    return f"{name}.{export_id}.{epoch}.part"


def locked(path: Path) -> int:
    """Create and lock a file, and return its descriptor. If a sweep removes it before the lock, create it again."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)


def parts_in(directory: Path) -> list[Path]:
    """Return the parts in a cell's snapshot directory. Raise OSError if it can't be read."""
    return [path for path in directory.iterdir() if path.name.endswith(".part")]


def epoch_of(part: Path) -> int:
    """Return the epoch in the name of a part, or 0 if the name has another form."""
    match = _PART.fullmatch(part.name)
    return int(match["epoch"]) if match else 0


def fence(directory: Path, epoch: int) -> None:
    """Remove the parts of older epochs, and of the others those without a living exporter.

    Raises:
        FencedError: if the exporter of a newer part is alive. That part's epoch dates from before the server's store
            went back in time.
    """
    for path in parts_in(directory):
        if not _PART.fullmatch(path.name):
            continue
        if epoch_of(path) < epoch:
            path.unlink(missing_ok=True)
        elif not sweep(path) and path.exists():
            raise FencedError


def sweep(path: Path) -> bool:
    """Remove a part and return True, unless its lock is held or it can't be opened as a file."""
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
