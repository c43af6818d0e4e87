"""Parts: snapshots that are being written, under names that are fences.

A part is `{Name}.{export id}.{epoch}.part`, and locked by who writes it. Publishing links it to its final name, which
can't be done once its own name was taken away, and never replaces a file.
"""

import fcntl
import os
import re
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.[0-9a-f]+\.(?P<epoch>[0-9]+)\.part", re.ASCII)


class NameTakenError(Exception):
    """Raised when there is a snapshot of that name already."""


class FencedError(Exception):
    """Raised when a part was taken away: whoever did it has given up on its exporter."""


class Part:
    """A snapshot that is being written to `file`."""

    def __init__(self, path: Path, target: Path, file: BinaryIO) -> None:
        self._path = path
        self._target = target
        self.file = file

    @property
    def directory(self) -> Path:
        return self._path.parent

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Give the part its final name. Call `sync` before.

        Raises:
            NameTakenError: if there is a file of that name. It is left as it is.
            FencedError: if the part was taken away.
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
            # It might not be there after a power cut, and so it must not be called published.
            self._target.unlink()
            raise


def part_name(name: str, export_id: str, epoch: int) -> str:
    """What the part of a snapshot is called: whose it is, and of which lease."""
    return f"{name}.{export_id}.{epoch}.part"


def locked(path: Path) -> int:
    """A new file, locked: one that a sweep took away before it was locked is made again."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)


def parts_in(directory: Path) -> list[Path]:
    """The parts in a cell's directory of snapshots. Raises OSError if it can't be read."""
    return [path for path in directory.iterdir() if path.name.endswith(".part")]


def epoch_of(part: Path) -> int:
    """The epoch in a part's name; 0 if that is none of ours."""
    match = _PART.fullmatch(part.name)
    return int(match["epoch"]) if match else 0


def fence(directory: Path, epoch: int) -> None:
    """Take the parts of older exporters away, and of newer ones those that are dead.

    Raises:
        FencedError: if a newer one lives: then the epoch is one from before the server's store went back in time.
    """
    for path in parts_in(directory):
        if not _PART.fullmatch(path.name):
            continue
        if epoch_of(path) < epoch:
            path.unlink(missing_ok=True)
        elif not sweep(path) and path.exists():
            raise FencedError


def sweep(path: Path) -> bool:
    """Remove a part, unless somebody holds its lock or it is no file."""
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
