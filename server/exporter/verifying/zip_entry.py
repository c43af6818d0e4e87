"""A strict reader of a zip entry's content, which must have the length and the place that the zip's directory says."""

import stat
import struct
import zlib
from collections.abc import Iterator

from server.exporter.verifying.file_window import DamagedError, Window
from server.exporter.verifying.zip_directory import UTF8_NAME, Record, widened

_HEADER = struct.Struct("<4s5H3L2H")
_CHUNK = 256 * 1024

_STORED, _DEFLATED = 0, 8
# Bits of an entry's flags: it is encrypted; the level of its compression; its sizes are in a data descriptor.
_ENCRYPTED, _LEVELS, _DESCRIPTOR = 0x2041, 0x0006, 0x0008
_KNOWN_FLAGS = _LEVELS | _DESCRIPTOR | UTF8_NAME
# The version of the zip format with Zip64. No entry of a snapshot needs a later version.
_LATEST_VERSION = 45
_DOS_DIRECTORY = 0x10
# The layouts of a data descriptor, which follows an entry's content with its checksum and sizes: with a signature or
# without, with 64-bit or 32-bit sizes. The longest comes first, because a short layout can match the start of a long
# descriptor, and never the other way round.
_DESCRIPTORS = (("<4sLQQ", b"PK\7\10"), ("<LQQ", None), ("<4sLLL", b"PK\7\10"), ("<LLL", None))


def content(window: Window, record: Record, end: int) -> Iterator[bytes]:
    """Yield an entry's content, in pieces. The pieces are proven right only when the generator ends without an error.

    It never yields more bytes than the zip's directory states as the size of the entry, and never reads past `end`.

    Args:
        end: the offset at which the entry must end.

    Raises:
        DamagedError: if the entry is damaged.
        OSError: if the file can't be read.
    """
    _check_kind(record)
    start = _start(window, record)
    # Checked before inflating: overlapping entries could inflate the same bytes any number of times.
    if start + record.compressed > end:
        raise DamagedError("it overlaps the next entry")
    crc = 0
    chunks = _inflated(window, record, start) if record.method == _DEFLATED else _stored(window, record, start)
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if crc != record.crc:
        raise DamagedError("its content is damaged (CRC-32)")
    data_end = start + record.compressed
    if record.flags & _DESCRIPTOR:
        data_end += _descriptor_length(window, record, data_end)
    if data_end != end:
        raise DamagedError("it doesn't end where the next entry begins")


def _check_kind(record: Record) -> None:
    if record.flags & _ENCRYPTED:
        raise DamagedError("it is encrypted")
    if record.flags & ~_KNOWN_FLAGS:
        raise DamagedError(f"it has unknown flags ({record.flags:#06x})")
    if record.method not in (_STORED, _DEFLATED):
        raise DamagedError(f"its compression method {record.method} is unknown")
    if record.version & 0xFF > _LATEST_VERSION or record.disk:
        raise DamagedError("it needs a newer zip version, or another disk")
    is_directory = record.raw_name.endswith(b"/")
    kind = stat.S_IFMT(record.attributes >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DamagedError("it would unpack as a link or a special file")
    if not is_directory and (kind == stat.S_IFDIR or record.attributes & _DOS_DIRECTORY):
        raise DamagedError("it is marked as a directory, but has the name of a file")
    if is_directory and record.size:
        raise DamagedError("it is a directory with content")


def _start(window: Window, record: Record) -> int:
    """Return the offset of an entry's data. Raise DamagedError unless the entry's header agrees with the directory."""
    header = window.read(record.offset, _HEADER.size)
    signature, version, flags, method, _, _, crc, compressed, size, name_length, extra_length = _HEADER.unpack(header)
    if signature != b"PK\3\4":
        raise DamagedError("it is not at the offset that the directory says")
    named = record.offset + _HEADER.size
    text = window.read(named, name_length + extra_length)
    size, compressed = widened(text[name_length:], size, compressed)
    if (text[:name_length], flags, method) != (record.raw_name, record.flags, record.method):
        raise DamagedError("its header disagrees with the directory")
    numbers, expected = (crc, compressed, size), (record.crc, record.compressed, record.size)
    # A number that was unknown when the header was written is 0 there, and is in the data descriptor.
    later = flags & _DESCRIPTOR
    if any(number != right and (number or not later) for number, right in zip(numbers, expected, strict=True)):
        raise DamagedError("its header disagrees with the directory")
    if version & 0xFF > _LATEST_VERSION:
        raise DamagedError("it needs a newer zip version")
    return int(named + name_length + extra_length)


def _stored(window: Window, record: Record, start: int) -> Iterator[bytes]:
    if record.compressed != record.size:
        raise DamagedError("it is not compressed, but has two sizes")
    left = record.size
    while left:
        chunk = window.read(start + record.size - left, min(left, _CHUNK))
        left -= len(chunk)
        yield chunk


def _inflated(window: Window, record: Record, start: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left, unread, pending = record.size, record.compressed, b""
    while not inflater.eof:
        if not pending:
            pending = window.read(start + record.compressed - unread, min(unread, _CHUNK))
            unread -= len(pending)
        exhausted = not pending
        try:
            chunk = inflater.decompress(pending, min(left + 1, _CHUNK))
        except zlib.error as error:
            raise DamagedError("its content is damaged (deflate)") from error
        pending = inflater.unconsumed_tail
        left -= len(chunk)
        if left < 0:
            raise DamagedError(f"it is longer than its {record.size:,} bytes")
        if chunk:
            yield chunk
        elif exhausted and not inflater.eof:
            raise DamagedError("its content is cut off")
    if left:
        raise DamagedError(f"it is {left:,} bytes shorter than its {record.size:,}")
    if unread or inflater.unused_data:
        raise DamagedError("bytes follow its content")


def _descriptor_length(window: Window, record: Record, position: int) -> int:
    numbers = (record.crc, record.compressed, record.size)
    for layout, signature in _DESCRIPTORS:
        length = struct.calcsize(layout)
        expected = numbers if signature is None else (signature, *numbers)
        if position + length <= window.size and struct.unpack(layout, window.read(position, length)) == expected:
            return length
    raise DamagedError("its data descriptor disagrees with the directory")
