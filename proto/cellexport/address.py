"""Addresses to listen on, and whether only this machine can reach them."""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on: a host and a port, or a unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def file(self) -> Path | None:
        """Return the path of the unix socket, or None if the address is a host and a port."""
        return Path(self.path) if self.path else None

    @property
    def is_local(self) -> bool:
        """Return whether only this machine can reach the address."""
        return bool(self.path) or is_loopback(self.host)

    def probe(self) -> None:
        """Raise OSError if the address can't be listened on: it is in use, or is not an address of this machine."""
        if self.path:
            self._probe_unix()
            return
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((self.host, self.port))

    def _probe_unix(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                # Nobody listens: the file is missing, or a dead program left it behind.
                return
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def is_loopback(host: str) -> bool:
    """Return whether a host means this machine. No name except `localhost` is resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
