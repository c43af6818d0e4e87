"""A progress bar, on a terminal."""

import sys

from cellexport.v1.exporter_pb2 import Progress

_WIDTH = 30


class Bar:
    """Shows one export at a time, on one line of standard error. Shows nothing where that is no terminal."""

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
        """Leave the line to whatever comes next."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
