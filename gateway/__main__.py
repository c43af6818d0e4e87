"""`python -m gateway`: the facade, served by Granian. Settings come from the environment; see the README."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any
from wsgiref.types import WSGIApplication

import click
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer

from cellexport import logs
from cellexport.metrics import MetricsServer
from cellexport.settings import Address, Environment, SettingError
from gateway import create_app
from gateway.config import Settings
from gateway.metrics import Metrics

_THREADS = 32
# How long a request that is being served may take to end.
_GRACE_SECONDS = 4

_log = logging.getLogger("gateway")


def main() -> None:
    """Run the command line. A bad setting ends it with status 2."""
    cli(prog_name="cellexport-gateway")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Serve over HTTP until SIGTERM or SIGINT; a second signal ends the program at once. Settings come from the
    environment.
    """
    os.umask(0o077)
    try:
        log_config = logs.configure(Environment(os.environ), terminal=logs.is_terminal())
        settings = Settings.read(os.environ)
        _require_free("CELLEXPORT_HTTP_LISTEN", settings.listen)
        if settings.metrics is not None:
            _require_free("CELLEXPORT_HTTP_METRICS_LISTEN", settings.metrics)
    except SettingError as error:
        print(f"cellexport-gateway: {error}", file=sys.stderr)
        sys.exit(2)
    _forget_header_variables()
    # A worker of its own making inherits nothing but what it needs.
    multiprocessing.set_start_method("spawn")
    _log.info("starting", extra={"address": str(settings.listen), "target": settings.target})
    _granian(settings, log_config).serve()
    _log.info("ended")


def worker_app() -> WSGIApplication:
    """The application in a worker, which ends when the program that started it has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    logs.capture()
    settings = Settings.read(os.environ)
    return create_app(settings, _serve_metrics(settings.metrics))


def _serve_metrics(address: Address | None) -> Metrics | None:
    """The metrics of a worker, served by itself as long as it lives."""
    if address is None:
        return None
    metrics = Metrics()
    try:
        MetricsServer.open(metrics.registry, address)
    except OSError as error:
        # It was free at the start. To answer requests is worth more than to count them.
        _log.error("the metrics can't be served", extra={"address": str(address), "error": str(error)})
    return metrics


class _Server(MPServer):
    """Granian, which closes idle connections when it is told to end, and answers what it has begun to read."""

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        # The second ends this program at once, and the worker with it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _log.info("ending: requests under way are answered, and no connection is taken any more")
        super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]


def _granian(settings: Settings, log_config: dict[str, Any]) -> MPServer:
    return _Server(
        "gateway.__main__:worker_app",
        factory=True,
        address=settings.listen.host,
        port=settings.listen.port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=1,
        blocking_threads=_THREADS,
        respawn_failed_workers=True,
        workers_kill_timeout=_GRACE_SECONDS,
        log_level=LogLevels.error,
        log_dictconfig=log_config,
    )


def _require_free(name: str, address: Address) -> None:
    """Granian shares its port with whoever else does; so look whether anybody has it."""
    try:
        address.probe()
    except OSError as error:
        raise SettingError(
            f"{name}: {address} can't be listened on ({error.strerror}). "
            "Another program may be using it: stop that one, or name another address."
        ) from error


def _forget_header_variables() -> None:
    """Granian puts the environment into each request, where a variable HTTP_… would pass for a header."""
    for name in [name for name in os.environ if name.startswith(("HTTP_", "CONTENT_"))]:
        del os.environ[name]


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


if __name__ == "__main__":
    main()
