"""`python -m server.exporter`: does exports, one at a time, until SIGTERM or SIGINT. Start several for more."""

import logging
import os
import resource
import signal
import sys
import threading

from cellexport import client, logs
from cellexport.settings import Environment, SettingError
from cellexport.v1.exporter_pb2_grpc import ExporterServiceStub
from server.exporter.area import SnapshotArea
from server.exporter.bar import Bar
from server.exporter.config import Settings
from server.exporter.runner import RefusedError, Runner

_SIGNALS = {signal.SIGTERM, signal.SIGINT}

_log = logging.getLogger("server.exporter")


def main() -> None:
    """Work until a signal. A second signal ends the program at once."""
    os.umask(0o077)
    # Before any thread is started, so that all of them leave the signals to the one that waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        terminal = logs.is_terminal()
        logs.configure(Environment(os.environ), terminal=terminal)
        _work(Settings.read(os.environ), terminal=terminal)
    except (SettingError, RefusedError, OSError) as error:
        print(f"cellexport-exporter: {error}", file=sys.stderr)
        sys.exit(2)


def _work(settings: Settings, *, terminal: bool) -> None:
    _raise_file_limit()
    area = SnapshotArea(settings.unit_dir / "snapshots")
    swept = area.sweep()
    with client.channel(settings.target) as channel:
        runner = Runner(
            stub=ExporterServiceStub(channel),
            token=settings.token,
            cells=settings.unit_dir / "cells",
            area=area,
            bar=Bar(terminal=terminal),
        )
        threading.Thread(target=_wait_for_signals, args=(runner,), name="signals", daemon=True).start()
        _log.info("waiting for exports", extra={"target": settings.target, "swept_parts": swept})
        runner.run()
    _log.info("ended")


def _wait_for_signals(runner: Runner) -> None:
    signal.sigwait(_SIGNALS)
    _log.info("ending")
    runner.stop()
    signal.sigwait(_SIGNALS)
    os._exit(1)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


if __name__ == "__main__":
    main()
