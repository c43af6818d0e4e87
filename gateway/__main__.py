"""`python -m gateway`: the facade, served by Granian. Settings come from the environment; see the README."""

import logging
import multiprocessing
import os
import sys
import threading
from wsgiref.types import WSGIApplication

import click

from cellexport.address import Address
from cellexport.environment import Environment, SettingError
from cellexport.program import logs
from cellexport.program.metrics_server import MetricsServer
from gateway import create_app, granian_server
from gateway.metrics import Metrics
from gateway.settings import Settings

_log = logging.getLogger("gateway")


def main() -> None:
    """Run the command line. A bad setting ends it with status 2."""
    cli(prog_name="cellexport-gateway")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cellexport", message="%(prog)s %(version)s")
def cli() -> None:
    """Serve over HTTP until SIGTERM or SIGINT; a second signal ends the program at once. Settings come from the
    environment.
    """
    os.umask(0o077)
    try:
        log_config = logs.configure(Environment(os.environ), terminal=logs.is_terminal())
        settings = Settings.read(os.environ)
        granian_server.require_free("CELLEXPORT_HTTP_LISTEN", settings.listener.address)
        if settings.metrics is not None:
            granian_server.require_free("CELLEXPORT_HTTP_METRICS_LISTEN", settings.metrics)
    except SettingError as error:
        print(f"cellexport-gateway: {error}", file=sys.stderr)
        sys.exit(2)
    _forget_header_variables()
    # A worker of its own making inherits nothing but what it needs.
    multiprocessing.set_start_method("spawn")
    _log.info("starting", extra={"address": str(settings.listener.address), "target": settings.target})
    settings.listener.warn_if_wide()
    granian_server.server("gateway.__main__:worker_app", settings.listener, log_config).serve()
    _log.info("ended")


def worker_app() -> WSGIApplication:
    """The application in a worker, which ends when the program that started it has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    logs.capture()
    # The files were good when the program started. While they are exchanged they may not be, and a worker that failed
    # by that would take the door with it.
    settings = Settings.read(os.environ, check_files=False)
    app = create_app(settings, _serve_metrics(settings.metrics))
    _log.info("serving", extra={"address": str(settings.listener.address)})
    return app


def _serve_metrics(address: Address | None) -> Metrics | None:
    """The metrics of a worker, served by itself as long as it lives."""
    if address is None:
        return None
    metrics = Metrics()
    try:
        MetricsServer.open(metrics.registry, address, shared=True)
    except OSError as error:
        # It was free at the start. To answer requests is worth more than to count them.
        _log.error("the metrics can't be served", extra={"address": str(address), "error": str(error)})
    return metrics


def _forget_header_variables() -> None:
    """Granian puts the environment into each request, where a variable HTTP_… would pass for a header."""
    for name in [name for name in os.environ if name.startswith(("HTTP_", "CONTENT_"))]:
        del os.environ[name]


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


if __name__ == "__main__":
    main()
