"""The progress of an export. The writing thread counts it, and the heartbeat's thread reads it."""

from dataclasses import dataclass

from cellexport.v1.exporter_pb2 import Progress

# An entry counts as this many bytes of work. So progress shows during one huge file and during a million small ones.
_ENTRY_WEIGHT = 4096
# The most bytes that are reported: the contract limits each number to 2^60, but files can claim a larger total size.
_LARGEST = 2**59


@dataclass(slots=True)
class Tally:
    """Counts of the entries and bytes of an export. The totals grow while the exporter counts the cell."""

    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    def progress(self) -> Progress:
        """Return the progress to report. The totals are raised if more was written than was counted before."""
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
