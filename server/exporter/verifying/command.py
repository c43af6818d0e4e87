"""`python -m server.exporter verify`: proves snapshots complete, or names what is wrong with them."""

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

# Problems that are named, of each file.
_NAMED = 20
# A name is cut to this, which is as long as a path can be.
_LONGEST_NAME = 4096
# The bar is for files that take longer than this, and is drawn so often.
_PATIENCE, _PAUSE = 0.5, 0.2


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
def verify(files: tuple[Path, ...]) -> None:
    """Prove snapshots complete, by nothing but themselves.

    Every entry must be there, and be what the list says; the list must be what the manifest says; and nothing else may
    be in the file. Prints one line for a complete snapshot, or a line for each thing that is wrong. It needs no
    settings and no server, and changes nothing.

    Ends with 0 if all are complete, with 1 if one is not, with 2 if the command line is wrong.
    """
    bar = Bar(terminal=logs.is_terminal())
    try:
        complete = [_verify(file, bar) for file in files]
    except KeyboardInterrupt:
        bar.end()
        # As if nobody had caught it: so a loop in a shell ends too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise
    sys.exit(0 if all(complete) else 1)


def _verify(file: Path, bar: Bar) -> bool:
    """Print what is found in one file, and return whether it is complete."""
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
            _say(bar, f"{_shown(str(file))}: {_completeness(finding)}")
            return True
        problems += 1
        if problems <= _NAMED:
            _say(bar, f"{_shown(str(file))}: {_described(finding)}")
    if problems > _NAMED:
        _say(bar, f"{_shown(str(file))}: and {problems - _NAMED:,} more")
    return False


def _completeness(complete: Complete) -> str:
    manifest = complete.manifest
    created = manifest.created.replace(tzinfo=None).isoformat(timespec="seconds")
    counts = f"{manifest.entry_count:,} entries, {manifest.bytes:,} bytes"
    return f"complete: {counts}, exported {created}Z from cell {_shown(manifest.cell)}"


def _described(problem: Problem) -> str:
    return f"{_shown(problem.part)}: {problem.what}"


def _shown(name: str) -> str:
    """A name that neither drives a terminal nor looks like a sentence of ours."""
    cut = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    return logs.visible(cut).replace(": ", "\\x3a ")


def _say(bar: Bar, line: str) -> None:
    bar.end()
    # What the terminal's encoding lacks is shown escaped.
    click.echo(line.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
