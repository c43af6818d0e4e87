"""Helpers to rebuild snapshots incompletely or wrongly, with zipfile or by changing bytes."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

MANIFEST, ENTRIES = "00_manifest.json", "00_entries.ndjson"
# Offsets of numbers in an entry's record in the zip's directory, and in the header before the entry's data.
RECORD = {
    "version": 6,
    "flags": 8,
    "method": 10,
    "crc": 16,
    "compressed": 20,
    "size": 24,
    "disk": 34,
    "mode": 40,
    "offset": 42,
}
HEADER = {"version": 4, "flags": 6, "method": 8, "crc": 14, "compressed": 18, "size": 22}
BLOCK = 16 * 1024 * 1024


@dataclass
class Parts:
    """The content of a snapshot: its entries, the lines of its list of entries, and its manifest.

    `raw` maps the name of an entry to the content that is written in its place.
    """

    contents: dict[str, bytes]
    lines: list[dict[str, Any]]
    manifest: dict[str, Any]
    raw: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: bytes) -> "Parts":
        contents = contents_of(snapshot)
        manifest, text = contents.pop(MANIFEST), contents.pop(ENTRIES)
        return cls(contents, [json.loads(line) for line in text.splitlines()], json.loads(manifest))

    def add(self, name: str, content: bytes = b"x") -> None:
        self.contents[name] = content
        self.list(name, content)

    def list(self, name: str, content: bytes = b"x") -> None:
        line = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mtime": 0}
        self.lines.append(line)

    def remove(self, name: str) -> None:
        del self.contents[name]
        self.lines = [line for line in self.lines if line["name"] != name]

    def text(self) -> bytes:
        return self.raw.get(ENTRIES) or b"".join(json.dumps(line).encode() + b"\n" for line in self.lines)

    def seal(self) -> "Parts":
        """Make the manifest agree with the list of entries."""
        listed = [line for line in self.lines if "skipped" not in line]
        self.manifest["entries_sha256"] = hashlib.sha256(self.text()).hexdigest()
        self.manifest["entry_count"] = len(listed)
        self.manifest["bytes"] = sum(line["size"] for line in listed)
        return self

    def zipped(self, file: IO[bytes] | None = None, method: int = zipfile.ZIP_DEFLATED) -> bytes:
        target = file or io.BytesIO()
        manifest = json.dumps(self.manifest).encode()
        with zipfile.ZipFile(target, "w", method) as snapshot:
            for name, content in (self.contents | {ENTRIES: self.text(), MANIFEST: manifest} | self.raw).items():
                snapshot.writestr(name, content)
        return target.getvalue() if isinstance(target, io.BytesIO) else b""


def changed(snapshot: bytes, change: Callable[[Parts], object], *, sealed: bool = True) -> bytes:
    """Return the snapshot after `change` of its parts. If `sealed`, its manifest agrees with the list of entries."""
    parts = Parts.of(snapshot)
    change(parts)
    return (parts.seal() if sealed else parts).zipped()


def contents_of(snapshot: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(snapshot)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def record_at(snapshot: bytes, name: str) -> int:
    """Return the position of an entry's record in the zip's directory."""
    return snapshot.rindex(name.encode()) - 46


def header_at(snapshot: bytes, name: str) -> int:
    (offset,) = struct.unpack_from("<L", snapshot, record_at(snapshot, name) + RECORD["offset"])
    return int(offset)


def data_of(snapshot: bytes, name: str) -> range:
    """Return the positions of an entry's compressed bytes in the snapshot."""
    start = header_at(snapshot, name)
    names, extra = struct.unpack_from("<2H", snapshot, start + 26)
    (size,) = struct.unpack_from("<L", snapshot, record_at(snapshot, name) + RECORD["compressed"])
    return range(start + 30 + names + extra, start + 30 + names + extra + size)


def patched(snapshot: bytes, name: str, *, header: bool = True, record: bool = True, **numbers: int) -> bytes:
    """Return a snapshot with changed numbers of an entry, in its header, its record in the directory, or both."""
    data = bytearray(snapshot)
    for key, number in numbers.items():
        layout = "<L" if key in ("crc", "compressed", "size", "offset") else "<H"
        if record:
            struct.pack_into(layout, data, record_at(snapshot, name) + RECORD[key], number)
        if header and key in HEADER:
            struct.pack_into(layout, data, header_at(snapshot, name) + HEADER[key], number)
    return bytes(data)


def flipped(snapshot: bytes, position: int, mask: int = 0xFF) -> bytes:
    data = bytearray(snapshot)
    data[position] ^= mask
    return bytes(data)


def deflated_zeros(blocks: int) -> bytes:
    """Return deflated zeros that inflate to 16 MiB for each block. They take about a thousandth of that."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflater.compress(bytes(BLOCK)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return block * blocks + deflater.flush()


def with_deflated(
    snapshot: bytes, name: str, deflated: bytes, *, size: int, crc: int = 0, sha256: str = "0" * 64
) -> bytes:
    """Return the snapshot with one more entry: its compressed content, and the size and hashes that it declares."""
    parts = Parts.of(snapshot)
    parts.contents[name] = deflated
    parts.lines.append({"name": name, "size": size, "sha256": sha256, "mtime": 0})
    stored = parts.seal().zipped(method=zipfile.ZIP_STORED)
    return patched(stored, name, method=8, size=size, crc=crc)
