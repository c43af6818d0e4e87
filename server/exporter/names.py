"""Names of zip entries: the manifest, the list of entries, and the names made from file names.

The name of an entry is always valid UTF-8 and relative, and unpacks only below the target directory, on Windows too.
Unsafe characters become `%XX`, byte by byte. A `%` before two hexadecimal digits becomes `%25`. So two files never
share a name, and the original name can be restored.
"""

import os
import re

MANIFEST = "00_manifest.json"
ENTRIES = "00_entries.ndjson"

# The longest name of a zip entry, in bytes: the zip format stores the length of a name in 16 bits.
LONGEST = 65_535

# A `%` that would look like the start of a code.
_CODE = re.compile(r"%(?=[0-9A-Fa-f]{2})")
# The unsafe characters of a path component: control characters, backslashes, bytes that are not UTF-8, spaces and dots
# at the end, and the colon of a drive letter.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff]|[ .]+\Z|(?<=^[A-Za-z]):")


def entry_name(path: str) -> str:
    """Return the name of the entry for a path below a cell's directory.

    Args:
        path: separated by `/`, as `os.fsdecode` returns it: bytes that are not UTF-8 are surrogates.
    """
    return "/".join(_UNSAFE.sub(_codes, _CODE.sub("%25", part)) for part in path.split("/"))


def is_safe(name: str) -> bool:
    """Return whether an entry of that name unpacks only below the target directory, on every system."""
    return all(part and not _UNSAFE.search(part) for part in name.removesuffix("/").split("/"))


def shown(path: str) -> str:
    """Return a path as a text that JSON can hold: bytes that are not UTF-8 become `\\xXX`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _codes(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(match[0]))
