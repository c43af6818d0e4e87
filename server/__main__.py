"""`python -m server`: the gRPC server. Settings come from the environment; see the README."""

import asyncio
import logging
import os
import signal
import sys

from cellexport import logs
from cellexport.settings import Environment, SettingError
from server.config import Settings
from server.stores.sqlite_file import StoreError
from server.wiring import ListenError, serving

_log = logging.getLogger("server")


def main() -> None:
    """Serve until SIGTERM or SIGINT. A second signal ends the program at once."""
    os.umask(0o077)
    try:
        logs.configure(Environment(os.environ), terminal=logs.is_terminal())
        settings = Settings.read(os.environ)
        asyncio.run(_serve(settings))
    except (SettingError, StoreError, ListenError) as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    print(f"cellexport-server: {error}", file=sys.stderr)
    return 2


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with serving(settings) as address:
        _log.info("serving", extra={"address": address, "unit_dir": str(settings.unit_dir)})
        if settings.master_token is None:
            _log.warning("every call will be refused: set CELLEXPORT_MASTER_TOKEN or CELLEXPORT_MASTER_TOKEN_FILE")
        if os.environ.get("GRPC_TRACE") or os.environ.get("GRPC_VERBOSITY", "").upper() == "DEBUG":
            _log.warning("GRPC_TRACE and GRPC_VERBOSITY=DEBUG print metadata, and with it tokens: unset them")
        await stop.wait()
        _log.info("ending")


if __name__ == "__main__":
    main()
