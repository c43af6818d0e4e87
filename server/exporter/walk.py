"""Walks a cell's directory without ever leaving it.

Every directory and file is opened relative to its parent's descriptor. No link is followed, not even a link that
replaces a directory during the walk. Only regular files are opened. Within a directory, files come before directories,
both in the order of their names, so two walks of the same tree yield the same list. Memory holds the names in one
directory and the paths of the directories still to read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Non-blocking: opening a pipe that replaced a file must not wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Skipped(StrEnum):
    """The reasons why a file or directory is not in the snapshot."""

    SYMLINK = "symlink"
    SPECIAL = "special file"
    VANISHED = "vanished"
    NAME_TOO_LONG = "name too long"
    UNKNOWN = "not a known part of a cell"


@dataclass(frozen=True, slots=True)
class Found:
    """A file or directory below the root. `path` is relative, separated by `/`, as `os.fsdecode` returns it.

    `parent` is the open descriptor of the directory that holds a file, or of the directory itself. It is valid only
    until the walk continues. It is -1 for a file or directory that has vanished, and for a directory that was replaced.
    """

    path: str
    name: str
    parent: int
    size: int
    mtime_ns: int
    is_directory: bool = False
    is_empty: bool = False
    skipped: Skipped | None = None


class SourceError(Exception):
    """Raised when a file or directory of the cell can't be read. The text names it."""


class SourceChangedError(Exception):
    """Raised when a file became shorter while it was read: the bytes that were read were never the file's content."""


def walk(root: int) -> Iterator[Found]:
    """Yield all files and directories below an open directory.

    Raises:
        SourceError: if a directory can't be read.
    """
    pending = [""]
    while pending:
        path = pending.pop()
        try:
            with _opened_below(root, path) as directory:
                below: list[str] = []
                yield from _list(directory, path, below)
                pending.extend(reversed(below))
        except OSError as error:
            if error.errno not in _GONE or not path:
                raise SourceError(f"{path or '.'}: {error.strerror}") from error
            yield _gone(path, Skipped.VANISHED if error.errno == errno.ENOENT else Skipped.SYMLINK)


def open_file(found: Found) -> int | Skipped:
    """Open a file and return its descriptor, or return why the file must be skipped.

    Raises:
        SourceError: if the file can't be opened.
    """
    try:
        descriptor = os.open(found.name, _FILE, dir_fd=found.parent)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Skipped.VANISHED
        if error.errno == errno.ELOOP:
            return Skipped.SYMLINK
        if error.errno in (errno.ENXIO, errno.ENODEV):
            return Skipped.SPECIAL
        raise SourceError(f"{found.path}: {error.strerror}") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return Skipped.SPECIAL


# The errors for a directory that was removed, or replaced by a link or a file, after its name was read.
_GONE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})


@contextmanager
def _opened_below(root: int, path: str) -> Iterator[int]:
    """Yield the descriptor of a directory, opened step by step from the root, so that no step can be a link."""
    descriptor = os.dup(root) if not path else -1
    parent = root
    try:
        for name in path.split("/") if path else ():
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            if parent != root:
                os.close(parent)
            parent = descriptor
        yield descriptor
    finally:
        for opened in {descriptor, parent} - {root, -1}:
            os.close(opened)


def _list(directory: int, path: str, below: list[str]) -> Iterator[Found]:
    """Yield the directory itself (except the root) and its files. Add the paths of its directories to `below`."""
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(f"{path}/{entry.name}" if path else entry.name)
            else:
                names.append(entry.name)
    below.sort(key=os.fsencode)
    names.sort(key=os.fsencode)
    if path:
        mtime_ns = os.fstat(directory).st_mtime_ns
        is_empty = not (names or below)
        yield Found(path, path.rpartition("/")[2], directory, 0, mtime_ns, is_directory=True, is_empty=is_empty)
    for name in names:
        inner = f"{path}/{name}" if path else name
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            yield _gone(inner, Skipped.VANISHED)
            continue
        yield Found(inner, name, directory, status.st_size, status.st_mtime_ns, skipped=_unfit(status.st_mode))


def _unfit(mode: int) -> Skipped | None:
    """Return why a file of that mode must be skipped, or None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return Skipped.SYMLINK if stat.S_ISLNK(mode) else Skipped.SPECIAL


def _gone(path: str, why: Skipped) -> Found:
    return Found(path, path.rpartition("/")[2], -1, 0, 0, skipped=why)
