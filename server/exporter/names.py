"""Names of files as names of zip entries.

Whatever a file is called, its entry is valid UTF-8, relative, and unpacks nowhere but below its own directory, on
Windows too. What can't stay as it is becomes `%XX`, byte by byte; a `%` that could be taken for such a code becomes one
itself. So two names never become one, and the old name can be had back.
"""

import os
import re

# An entry's name has a length of 16 bits in the zip format.
LONGEST = 65_535

_CODE = re.compile(r"%(?=[0-9A-Fa-f]{2})")
# Control characters, backslashes, bytes that are no UTF-8; blanks and dots at the end, and the colon of a drive.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff]|[ .]+\Z|(?<=^[A-Za-z]):")


def entry_name(path: str) -> str:
    """The entry's name for a path below a cell's directory, whose parts are separated by `/`.

    Bytes that are no UTF-8 are expected as `os.fsdecode` gives them.
    """
    return "/".join(_UNSAFE.sub(_codes, _CODE.sub("%25", part)) for part in path.split("/"))


def is_safe(name: str) -> bool:
    """Whether an entry of that name unpacks below its directory, and nowhere else, wherever it is unpacked."""
    return all(part and not _UNSAFE.search(part) for part in name.removesuffix("/").split("/"))


def shown(path: str) -> str:
    """A path as JSON can hold it: bytes that are no UTF-8 become `\\xXX`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _codes(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(match[0]))
