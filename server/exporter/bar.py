"""A progress bar for terminals."""

import sys

from cellexport.v1.exporter_pb2 import Progress

_WIDTH = 30


class Bar:
    """A progress bar on one line of standard error, for one export at a time.

    Args:
        terminal: whether standard error is a terminal; otherwise nothing is shown.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal

    def show(self, name: str, progress: Progress) -> None:
        if not self._terminal:
            return
        share = progress.work_done / progress.work_total if progress.work_total else 0.0
        bar = ("#" * int(share * _WIDTH)).ljust(_WIDTH, ".")
        counts = f"{progress.entries_done:,}/{progress.entries_total:,} entries"
        sys.stderr.write(f"\r{name} [{bar}] {int(share * 100):3}% {counts}\x1b[K")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear the line of the bar."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
