"""How far an export is: counted by the thread that writes, read by the one that reports."""

from dataclasses import dataclass

from cellexport.v1.exporter_pb2 import Progress

# An entry counts as much work as this many bytes, so that neither a huge file nor a million small ones looks like a
# stall.
_ENTRY_WEIGHT = 4096
# A report may hold no larger numbers than 2^60; files can claim to be larger together.
_LARGEST = 2**59


@dataclass(slots=True)
class Tally:
    """Counts of entries and bytes. The totals grow while everything is counted."""

    entries_done: int = 0
    entries_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    def progress(self) -> Progress:
        """What to report. Where more was found than had been counted, the totals grow with it."""
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
