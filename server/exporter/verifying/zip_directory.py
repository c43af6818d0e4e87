"""A strict reader of a zip's central directory, one record at a time.

zipfile loads the whole directory, even of a hostile file, and accepts foreign bytes before a zip, between its entries
and after it. This reader accepts no foreign bytes: the entries follow one another in the directory's order, then comes
the directory, then the end record. docs/decisions.md has the measurement.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.exporter.verifying.file_window import DamagedError, Window

# The bit of an entry's flags which says that its name is UTF-8.
UTF8_NAME = 0x0800

_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_RECORD = struct.Struct("<4s6H3L5H2L")
_LONG = struct.Struct("<Q")
_FIELD = struct.Struct("<2H")

# A number with one of these values is too large for its place: the real number is in a Zip64 field or record.
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFF_FFFF
_ZIP64 = 0x0001
# The extra fields that are accepted: Zip64, times and owners. Others are refused: some give an entry another name.
_KNOWN_FIELDS = frozenset({_ZIP64, 0x000A, 0x5455, 0x5855, 0x7855, 0x7875})


@dataclass(frozen=True, slots=True)
class Record:
    """A directory record of an entry. `position` and `next` are the offsets of this record and the next one."""

    position: int
    next: int
    raw_name: bytes
    version: int
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    disk: int
    attributes: int
    offset: int

    @property
    def name(self) -> str:
        """Return the name, with undecodable bytes as `\\xXX`."""
        return self.raw_name.decode("utf-8", "backslashreplace")

    @property
    def name_is_text(self) -> bool:
        """Return whether every unzip program reads the same name: a name beyond ASCII must be UTF-8 and flagged so."""
        try:
            self.raw_name.decode("utf-8" if self.flags & UTF8_NAME else "ascii")
        except UnicodeDecodeError:
            return False
        return True


class Directory:
    """The central directory of a zip: `count` records from offset `start` to offset `end`.

    Raises:
        DamagedError: if the directory is damaged. Every method raises this too.
        OSError: if the file can't be read. Every method raises this too.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self.count, self.start, self.end = _find(window)

    def records(self) -> Iterator[Record]:
        """Yield all records, in their order."""
        position = self.start
        for number in range(1, self.count + 1):
            try:
                record = self.record(position)
            except DamagedError as error:
                raise DamagedError(f"entry {number:,} of its directory: {error}") from error
            yield record
            position = record.next
        if position != self.end:
            raise DamagedError("its directory is longer than its records")

    def record(self, position: int) -> Record:
        """Return the record at an offset."""
        if position + _RECORD.size > self.end:
            raise DamagedError("it is cut off")
        (
            signature, _, version, flags, method, _, _, crc, compressed, size,
            name_length, extra_length, comment_length, disk, _, attributes, offset,
        ) = _RECORD.unpack(self._window.read(position, _RECORD.size))  # fmt: skip
        if signature != b"PK\1\2":
            raise DamagedError("it is damaged")
        named = position + _RECORD.size
        following = named + name_length + extra_length + comment_length
        if following > self.end:
            raise DamagedError("it is damaged")
        text = self._window.read(named, name_length + extra_length)
        size, compressed, offset = widened(text[name_length:], size, compressed, offset)
        return Record(
            position=position,
            next=following,
            raw_name=text[:name_length],
            version=version,
            flags=flags,
            method=method,
            crc=crc,
            compressed=compressed,
            size=size,
            disk=disk,
            attributes=attributes,
            offset=offset,
        )

    def end_of(self, record: Record) -> int:
        """Return the offset at which an entry must end: the begin of the next entry, or of the directory."""
        return self.start if record.next == self.end else self.record(record.next).offset


def widened(extra: bytes, *numbers: int) -> tuple[int, ...]:
    """Return the numbers of a header. A number that needs more than 32 bits is taken from the header's Zip64 field.

    Args:
        extra: the extra fields of the header.
        numbers: the numbers as the header has them, in the order of the Zip64 field.

    Raises:
        DamagedError: if the Zip64 field is missing, or an extra field is unknown.
    """
    wide = _fields(extra).get(_ZIP64, b"")
    result = []
    for number in numbers:
        if number == _FULL_32:
            if len(wide) < _LONG.size:
                raise DamagedError("a size or an offset is missing")
            (number,) = _LONG.unpack_from(wide)
            wide = wide[_LONG.size :]
        result.append(number)
    return tuple(result)


def _fields(extra: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    while extra:
        if len(extra) < _FIELD.size:
            raise DamagedError("its extra fields are damaged")
        kind, length = _FIELD.unpack_from(extra)
        value, extra = extra[_FIELD.size : _FIELD.size + length], extra[_FIELD.size + length :]
        if len(value) != length or kind in fields:
            raise DamagedError("its extra fields are damaged")
        if kind not in _KNOWN_FIELDS:
            raise DamagedError(f"it has an unknown extra field ({kind:#06x})")
        fields[kind] = value
    return fields


def _find(window: Window) -> tuple[int, int, int]:
    """Find the zip's directory: return its number of records, and the offsets at which it begins and ends."""
    end = window.size - _END.size
    found = _END.unpack(window.read(end, _END.size)) if end >= 0 else (b"",)
    if found[0] != b"PK\5\6" or found[-1] != 0:
        if end >= 0 and window.read(0, 4) == b"PK\3\4":
            raise DamagedError("its end record is missing: the file was cut off, or bytes were appended")
        raise DamagedError("it is not a zip")
    _, disk, first_disk, here, count, size, start, _ = found
    if disk or first_disk or here != count:
        raise DamagedError("its end record is damaged")
    if end >= _LOCATOR_64.size + _END_64.size:
        locator = _LOCATOR_64.unpack(window.read(end - _LOCATOR_64.size, _LOCATOR_64.size))
        if locator[0] == b"PK\6\7":
            end -= _LOCATOR_64.size + _END_64.size
            count, size, start = _wide_end(window, end, locator, (count, size, start))
    if start + size != end:
        raise DamagedError("bytes are missing, or were put before it or between its parts")
    return count, start, end


def _wide_end(
    window: Window, end: int, locator: tuple[bytes, int, int, int], narrow: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return the numbers of the Zip64 end record. Each number of the usual end record must be the same, or full."""
    signature, length, _, _, disk, first_disk, here, count, size, start = _END_64.unpack(window.read(end, _END_64.size))
    wide = (count, size, start)
    agree = all(
        few in (many, full) for few, many, full in zip(narrow, wide, (_FULL_16, _FULL_32, _FULL_32), strict=True)
    )
    head = (signature, length, disk, first_disk, here)
    if locator[1:] != (0, end, 1) or head != (b"PK\6\6", _END_64.size - 12, 0, 0, count) or not agree:
        raise DamagedError("its end record is damaged")
    return wide
