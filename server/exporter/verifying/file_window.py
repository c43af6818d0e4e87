"""A file that is read here and there, a piece at a time. What comes next is read along with it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AHEAD = 64 * 1024


class DamagedError(Exception):
    """Raised when a file is not what it should be. Its text says in what, and holds nothing that the file chose."""


class Window:
    """An open file of a fixed size."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self._held = b""
        self._position = 0

    def read(self, position: int, size: int) -> bytes:
        """Just as many bytes as are asked for, which is to be no more than memory may hold.

        Raises:
            DamagedError: if the file has not so many there.
            OSError: if it can't be read.
        """
        start = position - self._position
        if start < 0 or start + size > len(self._held):
            if not 0 <= position <= self.size - size:
                raise DamagedError("it points behind the end of the file")
            self._held = os.pread(self._descriptor, max(size, _AHEAD), position)
            self._position, start = position, 0
            if len(self._held) < size:
                raise DamagedError("the file was cut short while it was read")
        return self._held[start : start + size]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Window, Window]]:
    """Two windows on a file, for reading at two places by turns.

    Raises:
        DamagedError: if it is no regular file.
        OSError: if it can't be opened.
    """
    # Not blocking: opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("it is not a regular file")
        yield Window(descriptor, status.st_size), Window(descriptor, status.st_size)
    finally:
        os.close(descriptor)
