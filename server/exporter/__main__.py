"""`python -m server.exporter` runs exports, `python -m server.exporter verify` checks that snapshots are complete."""

import logging
import os
import resource
import signal
import sys
import threading

import click

from cellexport import client
from cellexport.environment import Environment, SettingError
from cellexport.program import logs
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter.bar import Bar
from server.exporter.claims import RefusedError
from server.exporter.runner import Runner
from server.exporter.settings import Settings
from server.exporter.snapshot_directory import SnapshotDirectory, SnapshotDirectoryError
from server.exporter.verifying.command import verify

_SIGNALS = {signal.SIGTERM, signal.SIGINT}

_log = logging.getLogger("server.exporter")


def main() -> None:
    """Run the command line. A bad setting or a refused token ends the program with exit status 2."""
    os.umask(0o077)
    try:
        cli(prog_name="cellexport-exporter")
    except (SettingError, RefusedError, SnapshotDirectoryError, OSError) as error:
        print(f"cellexport-exporter: {error}", file=sys.stderr)
        sys.exit(2)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cellexport", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run exports, one at a time, until SIGTERM or SIGINT; a second signal ends the program at once. Start several
    exporters to run several exports at a time. Settings come from the environment.
    """
    if context.invoked_subcommand is None:
        # Block the signals before any thread starts: every thread inherits this, so only `_wait_for_signals` gets them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        terminal = logs.is_terminal()
        logs.configure(Environment(os.environ), terminal=terminal)
        _work(Settings.read(os.environ), terminal=terminal)


cli.add_command(verify)


def _work(settings: Settings, *, terminal: bool) -> None:
    _raise_file_limit()
    snapshots = SnapshotDirectory(settings.unit_dir / "snapshots")
    snapshots.prepare()
    swept = snapshots.sweep()
    with client.channel(settings.target, settings.tls) as channel:
        runner = Runner(
            stub=ExporterServiceStub(channel),
            token=settings.token,
            cells=settings.unit_dir / "cells",
            snapshots=snapshots,
            bar=Bar(terminal=terminal),
        )
        threading.Thread(target=_wait_for_signals, args=(runner,), name="signals", daemon=True).start()
        _log.info("waiting for exports", extra={"target": settings.target, "swept_parts": swept})
        runner.run()
    _log.info("stopped")


def _wait_for_signals(runner: Runner) -> None:
    signal.sigwait(_SIGNALS)
    _log.info("shutting down")
    runner.stop()
    signal.sigwait(_SIGNALS)
    os._exit(1)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


if __name__ == "__main__":
    main()
