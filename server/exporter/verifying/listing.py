"""The manifest and the list of entries of a snapshot, read from untrusted bytes."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from server.exporter.snapshot import EXPORT_VERSION
from server.exporter.verifying.file_window import DamagedError

# The longest manifest, in bytes.
MANIFEST_LIMIT = 64 * 1024
# The longest line of the list of entries, in bytes. A line holds a name of at most 64 KB, and an original name of up to
# twice that. A name that is too long for a zip is listed too, as skipped.
LINE_LIMIT = 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LARGEST = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a snapshot. `bytes` is the total size of the entries in the list."""

    cell: str
    created: datetime
    entry_count: int
    bytes: int
    entries_sha256: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the list of entries: an entry, or the name of a skipped file or directory."""

    name: str
    size: int = 0
    sha256: str = ""
    skipped: bool = False


def read_manifest(text: bytes) -> Manifest:
    """Return the manifest. Raise `DamagedError` if a key is missing or its value is invalid."""
    found = _object(text)
    version = found.get("export_version")
    if not _is_count(version) or version != EXPORT_VERSION:
        raise DamagedError(f"its export_version is not {EXPORT_VERSION}, the only known version")
    for key in ("unit_url", "cell", "export_id"):
        _require(found, key, isinstance(found.get(key), str))
    for key in ("epoch", "entry_count", "bytes"):
        _require(found, key, _is_count(found.get(key)))
    _require(found, "entries_sha256", _is_sha256(found.get("entries_sha256")))
    _require(found, "create_date", _is_number(found.get("create_date")))
    try:
        created = _EPOCH + timedelta(milliseconds=found["create_date"])
    except OverflowError as error:
        raise DamagedError("its create_date is not a date") from error
    return Manifest(found["cell"], created, found["entry_count"], found["bytes"], found["entries_sha256"])


def read_lines(chunks: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of a list of entries.

    Raises:
        DamagedError: if a line is invalid or longer than `LINE_LIMIT`.
    """
    for number, text in enumerate(_split(chunks), 1):
        try:
            yield _line(text)
        except DamagedError as error:
            raise DamagedError(f"line {number:,}: {error}") from error


def _line(text: bytes) -> Line:
    if len(text) > LINE_LIMIT:
        raise DamagedError(f"it is longer than {LINE_LIMIT:,} bytes")
    found = _object(text)
    _require(found, "name", isinstance(found.get("name"), str))
    if "skipped" in found:
        _require(found, "skipped", isinstance(found["skipped"], str))
        return Line(found["name"], skipped=True)
    _require(found, "size", _is_count(found.get("size")))
    _require(found, "sha256", _is_sha256(found.get("sha256")))
    _require(found, "mtime", _is_number(found.get("mtime")))
    return Line(found["name"], found["size"], found["sha256"])


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines. A line longer than the limit ends the list, and is yielded as far as it was read."""
    held = b""
    for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        yield from lines
        if len(held) > LINE_LIMIT:
            break
    if held:
        yield held


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode())
    # RecursionError: brackets nested too deep.
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is not JSON") from error
    if not isinstance(found, dict):
        raise DamagedError("it is not a JSON object")
    return found


def _require(found: dict[str, Any], key: str, valid: bool) -> None:
    if not valid:
        raise DamagedError(f"its {key} is " + ("not valid" if key in found else "missing"))


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_count(value: object) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
