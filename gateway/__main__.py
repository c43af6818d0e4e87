"""`python -m gateway`: the REST facade, served by Granian. Settings come from the environment; see the README."""

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
from gateway import create_app, granian_server
from gateway.metrics import Metrics, NoMetrics
from gateway.settings import Settings

_log = logging.getLogger("gateway")


def main() -> None:
    """Run the command line. A bad setting ends the program with exit status 2."""
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
    # Granian spawns its worker: a forked worker would inherit everything that this process has open.
    multiprocessing.set_start_method("spawn")
    _log.info("starting", extra={"address": str(settings.listener.address), "target": settings.target})
    settings.listener.warn_if_wide()
    granian_server.server("gateway.__main__:worker_app", settings.listener, log_config).serve()
    _log.info("stopped")


def worker_app() -> WSGIApplication:
    """Return the application. Granian calls this in its worker process, which ends when the main process dies."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    logs.capture()
    # Don't check the TLS files: the main process has checked them. They may be invalid for a moment while an operator
    # replaces them, and a worker that failed for that reason would end the whole gateway.
    settings = Settings.read(os.environ, check_files=False)
    app = create_app(settings, _serve_metrics(settings.metrics))
    _log.info("serving", extra={"address": str(settings.listener.address)})
    return app


def _serve_metrics(address: Address | None) -> Metrics:
    """Serve metrics over HTTP from this worker, at the metrics address. Return the metrics, for the worker to count.

    Args:
        address: None if metrics are off.
    """
    if address is None:
        return NoMetrics()
    # Imported only when needed: the library takes 5 MB of memory.
    from cellexport.program.metrics_server import MetricsServer
    from gateway.prometheus_metrics import PrometheusMetrics

    metrics = PrometheusMetrics()
    try:
        MetricsServer.open(metrics.registry, address, shared=True)
    except OSError as error:
        # Another program has taken the metrics address since the gateway started. Serve requests without `/metrics`:
        # answering requests matters more than counting them.
        _log.error("metrics unavailable", extra={"address": str(address), "error": str(error)})
    return metrics


def _forget_header_variables() -> None:
    """Remove variables like `HTTP_…`: Granian copies them into each request, where they look like headers."""
    for name in [name for name in os.environ if name.startswith(("HTTP_", "CONTENT_"))]:
        del os.environ[name]


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


if __name__ == "__main__":
    main()
