"""Random access to a file, in small pieces. Each read also fetches the bytes that follow."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The least number of bytes that one access to the file reads.
_AHEAD = 64 * 1024


class DamagedError(Exception):
    """Raised when a file is damaged. The text describes the damage, and contains no text from the file."""


class Window:
    """A reader of an open file of a fixed size, with a buffer of 64 KiB."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self._held = b""
        self._position = 0

    def read(self, position: int, size: int) -> bytes:
        """Return exactly `size` bytes from `position` on. The caller limits `size`, because memory holds all the bytes.

        Raises:
            DamagedError: if the file has fewer bytes at that position.
            OSError: if the file can't be read.
        """
        start = position - self._position
        if start < 0 or start + size > len(self._held):
            if not 0 <= position <= self.size - size:
                raise DamagedError("it points past the end of the file")
            self._held = os.pread(self._descriptor, max(size, _AHEAD), position)
            self._position, start = position, 0
            if len(self._held) < size:
                raise DamagedError("the file was cut short while it was read")
        return self._held[start : start + size]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Window, Window]]:
    """Open a file, and yield two readers with separate buffers, to read at two places of the file by turns.

    Raises:
        DamagedError: if the path is not a regular file.
        OSError: if the file can't be opened.
    """
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError("it is not a regular file")
        yield Window(descriptor, status.st_size), Window(descriptor, status.st_size)
    finally:
        os.close(descriptor)
