"""The progress of an export. The writing thread counts it, and the heartbeat's thread reads it."""

from dataclasses import dataclass

from cellexport.v1.exporter_pb2 import Progress

# The bytes of work that an entry counts for. So neither a huge file nor a million small files looks like a stall.
_ENTRY_WEIGHT = 4096
# Numbers in a report are at most 2^60, but files can claim a larger total size.
_LARGEST = 2**59


@dataclass(slots=True)
class Tally:
    """Counts of entries and bytes. The totals grow while the cell is counted."""

    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    def progress(self) -> Progress:
        """Return the progress to report. The totals grow if more is written than was counted."""
        entries, size = self.entries_done, min(self.bytes_done, _LARGEST)
        entries_total, bytes_total = self.entries_total, min(self.bytes_total, _LARGEST)
        if not entries_total:
            return Progress()
        entries_total, bytes_total = max(entries, entries_total), max(size, bytes_total)
        return Progress(
            work_done=size + _ENTRY_WEIGHT * entries,
            work_total=bytes_total + _ENTRY_WEIGHT * entries_total,
            entries_done=entries,
            entries_total=entries_total,
            bytes_done=size,
            bytes_total=bytes_total,
        )
