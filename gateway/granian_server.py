"""Granian, the HTTP server of the gateway: its address, its limits, and the renewal of its certificate.

A worker of Granian reads the certificate only once, when it starts. When the TLS files change, a new worker takes over,
and the old worker finishes its requests. Workers don't read the files themselves, but copies in memory (`memfd`) of
their last valid content. So a worker that starts while an operator replaces the files doesn't fail.
"""

import logging
import os
import signal
import threading
from typing import Any

from granian._types import SSLCtx
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.log import LogLevels
from granian.server.mp import MPServer

from cellexport.address import Address
from cellexport.environment import SettingError
from cellexport.pem import Pem, PemReloader
from cellexport.program.listening import SOCKET_MODE, Listener

_THREADS = 32
# How many seconds open requests have to finish when a worker shuts down.
_GRACE_SECONDS = 4
# How many seconds a new worker has to start before the old worker must shut down. A worker that starts later leaves a
# time in which connections are refused: loading takes half a second, and on a busy machine more than three.
_OVERLAP_SECONDS = 10.0
# How often the TLS files are checked for changes.
_CHECK_SECONDS = 1.0

_log = logging.getLogger("gateway")


def server(app: str, listener: Listener, log_config: dict[str, Any]) -> MPServer:
    """Return an HTTP server with one worker. Its method `serve` starts it.

    Args:
        app: `module:function`: the function that makes the application in the worker.
        log_config: the logging of the worker, for `logging.config.dictConfig`.
    """
    address = listener.address
    made = _Server(
        app,
        factory=True,
        address=address.host,
        port=address.port,
        uds=address.file,
        uds_permissions=SOCKET_MODE if address.file else None,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=1,
        blocking_threads=_THREADS,
        respawn_failed_workers=True,
        respawn_interval=_OVERLAP_SECONDS,
        workers_kill_timeout=_GRACE_SECONDS,
        log_level=LogLevels.error,
        log_dictconfig=log_config,
    )
    if listener.tls:
        certificates = _Certificates(made, PemReloader(listener.tls))
        threading.Thread(target=certificates.follow, name="certificates", daemon=True).start()
    return made


def require_free(name: str, address: Address) -> None:
    """Raise `SettingError` if another program listens on the address. Granian itself would share the port with it.

    Args:
        name: the setting that holds the address.
    """
    try:
        address.probe()
        if address.file:
            # The probe found no listener, so a dead program left the file of the unix socket behind.
            address.file.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(
            f"{name}: {address} can't be listened on ({error.strerror or error}). "
            "Another program may be using it: stop that one, or name another address."
        ) from error


class _Server(MPServer):
    """Granian's main process. At the first signal it shuts down gracefully; the second signal ends it at once."""

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        # From now on another signal kills this process. Then the worker ends too, because it waits for that
        # (`gateway.__main__`).
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _log.info("shutting down: finishing open requests, refusing new connections")
        super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]  # untyped in Granian


class _Certificates:
    """Copies in memory of the TLS files. A worker reads the copies when it starts."""

    def __init__(self, server: MPServer, reloader: PemReloader) -> None:
        self._server = server
        self._reloader = reloader
        self._files: list[int] = []
        # The copies for the previous worker. It may not have read them yet, so they are closed only one change later.
        self._older: list[int] = []
        self._publish(reloader.latest)

    def follow(self) -> None:
        """Start a new worker whenever the TLS files change. Never return."""
        pause = threading.Event()
        while not pause.wait(_CHECK_SECONDS):
            fresh = self._reloader.renewed()
            if fresh is not None:
                self._publish(fresh)
                self._server.signal_handler_reload()  # type: ignore[no-untyped-call]  # the reaction to SIGHUP
                pause.wait(_OVERLAP_SECONDS + _GRACE_SECONDS)

    def _publish(self, pem: Pem) -> None:
        for file in self._older:
            os.close(file)
        self._older = self._files
        self._files = [_in_memory(content) for content in (pem.chain, pem.key, pem.authorities) if content]
        chain, key, *authorities = (f"/proc/{os.getpid()}/fd/{file}" for file in self._files)
        # Set this attribute directly: Granian's constructor would resolve the paths, but files in memory have no path.
        authority = authorities[0] if authorities else None
        context: SSLCtx = (True, chain, key, None, str(SSLProtocols.tls12), authority, [], bool(authorities))
        self._server.ssl_ctx = context  # type: ignore[assignment]  # its type is inferred from a server without TLS


def _in_memory(content: bytes) -> int:
    file = os.memfd_create("pem")
    with os.fdopen(os.dup(file), "wb") as opened:
        opened.write(content)
    return file
