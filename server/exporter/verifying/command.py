"""`python -m server.exporter verify`: checks that snapshots are complete, and prints their problems."""

import signal
import sys
import time
from pathlib import Path

import click

from cellexport.program import logs
from server.exporter.bar import Bar
from server.exporter.tally import Tally
from server.exporter.verifying.verify import Complete, Problem
from server.exporter.verifying.verify import verify as findings_in

# At most this many problems of a file are printed; the others are counted.
_MOST_PRINTED = 20
# The longest name that is printed, in characters. A longer name in a damaged file is cut; no real path is longer.
_LONGEST_NAME = 4096
# The seconds until the progress bar appears, and the seconds between two drawings of the bar.
_PATIENCE, _PAUSE = 0.5, 0.2


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
def verify(files: tuple[Path, ...]) -> None:
    """Check that each FILE is a complete snapshot. Needs nothing but the file: no settings and no server.

    Every entry must be present and match the list of entries. The list must match the manifest. The file must contain
    nothing else. Prints one line for a complete snapshot, or one line for each problem. Changes no file.

    Exit status: 0 if all snapshots are complete, 1 if one is not, 2 if the command line is wrong.
    """
    bar = Bar(terminal=logs.is_terminal())
    try:
        complete = [_verify(file, bar) for file in files]
    except KeyboardInterrupt:
        bar.end()
        # End this program by SIGINT itself: a shell that runs it in a loop then ends the loop too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise
    sys.exit(0 if all(complete) else 1)


def _verify(file: Path, bar: Bar) -> bool:
    """Check one file and print the result. Return whether the snapshot is complete."""
    tally = Tally()
    due = time.monotonic() + _PATIENCE

    def tick() -> None:
        nonlocal due
        if time.monotonic() >= due:
            bar.show(_shown(file.name), tally.progress())
            due = time.monotonic() + _PAUSE

    problems = 0
    for finding in findings_in(file, tally, tick):
        if isinstance(finding, Complete):
            _print(bar, f"{_shown(str(file))}: {_completeness(finding)}")
            return True
        problems += 1
        if problems <= _MOST_PRINTED:
            _print(bar, f"{_shown(str(file))}: {_described(finding)}")
    if problems > _MOST_PRINTED:
        _print(bar, f"{_shown(str(file))}: and {problems - _MOST_PRINTED:,} more")
    return False


def _completeness(complete: Complete) -> str:
    manifest = complete.manifest
    created = manifest.created.replace(tzinfo=None).isoformat(timespec="seconds")
    counts = f"{manifest.entry_count:,} entries, {manifest.bytes:,} bytes"
    return f"complete: {counts}, exported {created}Z from cell {_shown(manifest.cell)}"


def _described(problem: Problem) -> str:
    return f"{_shown(problem.part)}: {problem.what}"


def _shown(name: str) -> str:
    """Return a name without control characters for the terminal, and without the `: ` that separates the columns."""
    cut = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    return logs.visible(cut).replace(": ", "\\x3a ")


def _print(bar: Bar, line: str) -> None:
    bar.end()
    # Escape the characters that the terminal's encoding lacks.
    click.echo(line.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
