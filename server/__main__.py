"""`python -m server` runs the gRPC server, `python -m server token` makes and explains tokens. See the README."""

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
import time

import click

from cellexport.environment import Environment, SettingError
from cellexport.program import logs
from server.auth.mint import MintError
from server.exports.store import StoreError
from server.ops.drain import LONGEST_GRACE_SECONDS
from server.rpc.listener import ListenError
from server.settings import Settings
from server.token_command import token
from server.wiring import serving

# After the drain the program has at least this many seconds to end, and more if the running calls did not use up their
# grace.
_LEAST_SECONDS = 2.0

_log = logging.getLogger("server")


def main() -> None:
    """Run the command line. A bad setting ends the program with exit status 2."""
    os.umask(0o077)
    try:
        cli(prog_name="cellexport-server")
    except (SettingError, StoreError, ListenError, MintError) as error:
        sys.exit(_explain(error))


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cellexport", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the program at once. Settings come from the environment."""
    if context.invoked_subcommand is None:
        _allow_many_connections()
        logs.configure(Environment(os.environ), terminal=logs.is_terminal())
        asyncio.run(_serve(Settings.read(os.environ)))


cli.add_command(token)


def _allow_many_connections() -> None:
    """Raise the soft limit of file descriptors to the hard limit: each connection takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _explain(error: Exception) -> int:
    print(f"cellexport-server: {error}", file=sys.stderr)
    return 2


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    ends_at = 0.0

    def on_signal() -> None:
        nonlocal ends_at
        ends_at = time.monotonic() + settings.drain_seconds + LONGEST_GRACE_SECONDS + _LEAST_SECONDS
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        stop.set()

    def on_drained() -> None:
        _end_within(max(_LEAST_SECONDS, ends_at - time.monotonic()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with serving(settings, drained=on_drained) as address:
        _log.info("serving", extra={"address": address, "unit_dir": str(settings.unit_dir)})
        if not settings.tokens.any():
            _log.warning(
                "every call will be refused: set CELLEXPORT_MASTER_TOKEN, CELLEXPORT_UNIT_SECRET, or "
                "CELLEXPORT_TRUSTED_ISSUERS"
            )
        if os.environ.get("GRPC_TRACE") or os.environ.get("GRPC_VERBOSITY", "").upper() == "DEBUG":
            _log.warning("GRPC_TRACE and GRPC_VERBOSITY=DEBUG print metadata, which contains tokens: unset them")
        await stop.wait()


def _end_within(seconds: float) -> None:
    """End the program after `seconds`, even if a disk or the event log hangs."""

    def end() -> None:
        # Sleep in steps, so that a pause of the whole program doesn't count.
        for left in range(int(seconds * 10), 0, -1):
            time.sleep(0.1)
            if left == 5:
                late = "shutdown timed out with data unwritten; exiting now"
                # Log in a thread, because the log may hang too.
                threading.Thread(target=_log.error, args=(late,), daemon=True).start()
        os._exit(1)

    threading.Thread(target=end, name="end", daemon=True).start()


if __name__ == "__main__":
    main()
