"""The address and TLS of a port. The rules for who may reach a port are the same for HTTP and gRPC."""

import ipaddress
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellexport.address import Address
from cellexport.environment import Environment, SettingError, plaintext_allowed
from cellexport.pem import PemFile, PemFiles

# The mode of a unix socket lets everybody connect: the permissions of its directory decide who can reach the socket.
SOCKET_MODE = 0o666

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on, and the TLS files for it, or None for plaintext."""

    address: Address
    tls: PemFiles | None

    @classmethod
    def read(
        cls, environment: Environment, kind: Literal["GRPC", "HTTP"], default: str, *, check_files: bool = True
    ) -> "Listener":
        """Read `CELLEXPORT_{kind}_LISTEN` and the TLS settings that go with it.

        Args:
            check_files: whether to refuse invalid TLS files.

        Raises:
            SettingError: for an invalid value, for plaintext that other machines can reach (unless
                `CELLEXPORT_PLAINTEXT` allows it), and for a unix socket that others could replace.
        """
        name = f"CELLEXPORT_{kind}_LISTEN"
        address = environment.listen(name, default)
        allowed = plaintext_allowed(environment)
        tls = _tls(environment, kind)
        if tls and check_files:
            tls.load()
        if address.path:
            if tls:
                raise SettingError(
                    f"CELLEXPORT_{kind}_TLS_CERT: {name} is a unix socket, where TLS is not spoken. Unset one of them."
                )
            _require_own_directory(name, Path(address.path).parent)
        elif not (tls or address.is_local or allowed):
            raise SettingError(
                f"{name}: {address} can be reached from other machines, and would be plaintext. "
                f"Listen on 127.0.0.1, set CELLEXPORT_{kind}_TLS_CERT and …_KEY, "
                "or set CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
            )
        return cls(address, tls)

    @property
    def curl(self) -> str:
        """Return curl's arguments for this address, without path and certificates."""
        if self.address.path:
            return f"--unix-socket {self.address.path} http://localhost"
        return f"{'https' if self.tls else 'http'}://{self.address}"

    def warn_if_wide(self) -> None:
        """Log a warning if every network of this machine reaches the address."""
        try:
            wide = ipaddress.ip_address(self.address.host).is_unspecified
        except ValueError:
            return
        if wide:
            _log.warning("listening on every address of this machine", extra={"address": str(self.address)})


def _tls(environment: Environment, kind: str) -> PemFiles | None:
    chain, key, authorities = (f"CELLEXPORT_{kind}_TLS_{part}" for part in ("CERT", "KEY", "CLIENT_CA"))
    files = PemFiles(
        PemFile.read(environment, chain), PemFile.read(environment, key), PemFile.read(environment, authorities)
    )
    files.require_pair(chain, key)
    if files.authorities and not files.chain:
        raise SettingError(f"{authorities}: is set, but {chain} is not: without TLS no client shows a certificate.")
    return files if files.chain else None


def _require_own_directory(name: str, directory: Path) -> None:
    """Refuse a directory in which others could replace the socket with their own."""
    try:
        status = directory.stat()
    except OSError as error:
        raise SettingError(f"{name}: {directory} is not a directory. Make it, with mode 700 or 750.") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingError(
            f"{name}: others may write to {directory}, and so put their own socket there. "
            "Use a directory of the program's own user with mode 700, or 750 to let a group connect."
        )
