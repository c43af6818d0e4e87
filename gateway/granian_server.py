"""Granian, set up for the facade: its address, its limits, and the renewal of its certificate.

A worker of Granian reads the certificate only once, when it starts. When the files change, a new worker takes over, and
the old one finishes its requests. Workers read copies in memory (`memfd`) of files that were valid, so that a worker
doesn't fail when it starts while the files are being replaced.
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
# How long a request may take to finish during shutdown.
_GRACE_SECONDS = 4
# How long a new worker has to start before the old one must stop.
_OVERLAP_SECONDS = 3.5
_CHECK_SECONDS = 1.0

_log = logging.getLogger("gateway")


def server(app: str, listener: Listener, log_config: dict[str, Any]) -> MPServer:
    """Return a server that is ready to serve.

    Args:
        app: `module:function` that makes the application in a worker.
        log_config: for `logging.config.dictConfig`.
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
    """Raise `SettingError` if the address is in use. Granian itself would share the port with the other program."""
    try:
        address.probe()
        if address.file:
            # A dead program left the socket behind: the probe found no listener.
            address.file.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(
            f"{name}: {address} can't be listened on ({error.strerror or error}). "
            "Another program may be using it: stop that one, or name another address."
        ) from error


class _Server(MPServer):
    """Granian's server. It shuts down gracefully at the first signal, and ends at once at the second."""

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        # The second signal ends this program at once, and the worker with it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _log.info("shutting down: finishing open requests, refusing new connections")
        super().signal_handler_interrupt(*args, **kwargs)  # type: ignore[no-untyped-call]


class _Certificates:
    """The TLS files that workers read when they start, as copies in memory."""

    def __init__(self, server: MPServer, reloader: PemReloader) -> None:
        self._server = server
        self._reloader = reloader
        self._files: list[int] = []
        # The files of the previous worker, which may still be starting.
        self._older: list[int] = []
        self._publish(reloader.latest)

    def follow(self) -> None:
        """Start a new worker whenever the files change. Never return."""
        pause = threading.Event()
        while not pause.wait(_CHECK_SECONDS):
            fresh = self._reloader.renewed()
            if fresh is not None:
                self._publish(fresh)
                self._server.signal_handler_reload()  # type: ignore[no-untyped-call]  # as SIGHUP does
                pause.wait(_OVERLAP_SECONDS + _GRACE_SECONDS)

    def _publish(self, pem: Pem) -> None:
        for file in self._older:
            os.close(file)
        self._older = self._files
        self._files = [_in_memory(content) for content in (pem.chain, pem.key, pem.authorities) if content]
        chain, key, *authorities = (f"/proc/{os.getpid()}/fd/{file}" for file in self._files)
        # Set here, because Granian's constructor resolves paths, and these have no name in a directory.
        authority = authorities[0] if authorities else None
        context: SSLCtx = (True, chain, key, None, str(SSLProtocols.tls12), authority, [], bool(authorities))
        self._server.ssl_ctx = context  # type: ignore[assignment]  # its type is inferred from a server without TLS


def _in_memory(content: bytes) -> int:
    file = os.memfd_create("pem")
    with os.fdopen(os.dup(file), "wb") as opened:
        opened.write(content)
    return file
