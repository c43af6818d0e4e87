"""A channel to the server, with TLS, bounded reconnects and retries, and no HTTP proxies; and readers of its errors.

For the programs and for Python callers:

    with client.channel("127.0.0.1:50051") as channel:
        stub = CellExportServiceStub(channel)
        stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(token), timeout=3)

To another machine: `client.channel("export.example:50051", client.Tls(ca=Path("ca.pem")))`.
"""

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from cellexport.address import is_loopback
from cellexport.environment import Environment, SettingError, plaintext_allowed
from cellexport.metadata import AUTHORIZATION, DOMAIN
from cellexport.pem import Pem, PemFile, PemFiles, PemReloader
from cellexport.renewing_channel import RenewingChannel

Metadata = tuple[tuple[str, str], ...]

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # This option is also the timeout of an attempt to connect: a slow server needs this long.
    ("grpc.min_reconnect_backoff_ms", 2500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    # Pings detect a dead server within 30 seconds. The server allows twice as many (`server.rpc.listener`).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # By default grpc sends only two pings while a call sends no data. A quiet watch needs more: this lifts the limit.
    ("grpc.http2.max_pings_without_data", 0),
)

# The gRPC statuses of a call that was cut off. CANCELLED: the server shut down before it began the call. INTERNAL: see
# `was_cut`.
_CUT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})

# A server that asks for a longer wait is not believed.
_LONGEST_RETRY_SECONDS = 60.0

_CA, _CERT, _KEY, _NAME = (f"CELLEXPORT_GRPC_{part}" for part in ("CA", "CLIENT_CERT", "CLIENT_KEY", "SERVER_NAME"))


@dataclass(frozen=True, slots=True)
class Tls:
    """The PEM files for TLS to the server. A channel reads them again when they change.

    Args:
        ca: the authorities that may have issued the server's certificate. No others are trusted.
        certificate: the client's certificate with its chain; needs `key`. None if the server asks for none.
        server_name: the name in the server's certificate, if it differs from the host in the target.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def files(self) -> PemFiles:
        """Return the files, each with the setting that names it, so that an error can name the setting."""
        return PemFiles(
            chain=PemFile(_CERT, self.certificate) if self.certificate else None,
            key=PemFile(_KEY, self.key) if self.key else None,
            authorities=PemFile(_CA, self.ca),
        )


def tls(environment: Environment, *, check_files: bool = True) -> Tls | None:
    """Return TLS to the server, or None for plaintext.

    Reads `CELLEXPORT_GRPC_CA`, `…_CLIENT_CERT`, `…_CLIENT_KEY` and `…_SERVER_NAME`.

    Args:
        check_files: whether to refuse invalid files.

    Raises:
        SettingError: if a value or a file is invalid, or if a setting has no effect because another is missing.
    """
    ca, certificate, key = (PemFile.read(environment, name) for name in (_CA, _CERT, _KEY))
    server_name = environment.text(_NAME, "")
    if ca is None:
        for name in (_CERT, _KEY, _NAME):
            if environment.text(name, ""):
                raise SettingError(f"{name}: is set, but {_CA} is not. Set it to the authority of the server.")
        return None
    PemFiles(certificate, key).require_pair(_CERT, _KEY)
    if not (server_name.isascii() and server_name.isprintable()) or " " in server_name:
        raise SettingError(f"{_NAME}: must be a host's name, like export.example.")
    chosen = Tls(ca.path, certificate.path if certificate else None, key.path if key else None, server_name)
    if check_files:
        chosen.files().load()
    return chosen


def target(environment: Environment) -> str:
    """Return the gRPC name of the server: `CELLEXPORT_GRPC_TARGET`, or else `CELLEXPORT_GRPC_LISTEN`.

    Raises:
        SettingError: if the server is on another machine, TLS is not set and plaintext is not allowed; if TLS is set
            for a unix socket, or for a list of addresses without `CELLEXPORT_GRPC_SERVER_NAME`; if anybody may write
            to the directory of a unix socket.
    """
    name = environment.text("CELLEXPORT_GRPC_TARGET", "") or environment.text(
        "CELLEXPORT_GRPC_LISTEN", "127.0.0.1:50051"
    )
    allowed = plaintext_allowed(environment)
    if environment.text(_CA, ""):
        if name.startswith("unix"):
            raise SettingError(f"{_CA}: {name} is a unix socket, where TLS is not spoken. Unset one of them.")
        if "," in name and not environment.text(_NAME, ""):
            raise SettingError(
                f"{_NAME}: the target is a list of addresses. Set the name in the servers' certificates."
            )
    elif not (_is_local(name) or allowed):
        raise SettingError(
            f"CELLEXPORT_GRPC_TARGET: {name} is another machine, and the call would be plaintext. "
            f"Set {_CA}, or CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    if name.startswith("unix:"):
        _require_closed_directory(Path(name.removeprefix("unix:")).parent)
    return name


def _require_closed_directory(directory: Path) -> None:
    """Refuse a directory in which anybody could put a socket, and so receive tokens.

    The server itself checks who owns the directory.
    """
    if directory.is_dir() and directory.stat().st_mode & stat.S_IWOTH:
        raise SettingError(
            f"CELLEXPORT_GRPC_TARGET: anybody may write to {directory}, and so put their own socket there. "
            "Let the server listen in a directory that only its own user may write to."
        )


def _is_local(name: str) -> bool:
    if name.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, separator, rest = name.partition("://")
    if set(name) & set("?#%") or (separator and (scheme not in ("dns", "ipv4", "ipv6") or rest[:1] != "/")):
        # The scheme, a name server or grpc's parser decides the address of such a name: it may be another machine.
        return False
    authority = name.rpartition("/")[2] if "://" in name else name.partition(":")[2] if name[:4] == "dns:" else name
    scheme, _, rest = authority.partition(":")
    if scheme in ("ipv4", "ipv6", "dns"):
        authority = rest
    hosts = [address.rpartition(":")[0] or address for address in authority.split(",")]
    return all(is_loopback(host.removeprefix("[").removesuffix("]")) for host in hosts)


def channel(
    name: str, tls: Tls | None = None, *, service_config: str = "", found_again_seconds: float = 1.0
) -> grpc.Channel:
    """Return a channel to the server with that gRPC name. Open it after a fork, never before.

    Args:
        tls: None for plaintext.
        service_config: the load balancing and retries, as JSON; `service_config.json` by default.
        found_again_seconds: the longest pause between attempts to connect to an unavailable server, and so the longest
            time until the channel notices that the server is back.

    Raises:
        SettingError: if a file of `tls` is invalid.
    """
    config = service_config or files("cellexport").joinpath("service_config.json").read_text()
    options: tuple[tuple[str, int | str], ...] = (
        *OPTIONS,
        ("grpc.max_reconnect_backoff_ms", round(found_again_seconds * 1000)),
        ("grpc.service_config", config),
    )
    if tls is None:
        return grpc.insecure_channel(name, options)
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))

    def connect(pem: Pem) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(pem.authorities, pem.key or None, pem.chain or None)
        return grpc.secure_channel(name, credentials, options)

    return RenewingChannel(PemReloader(tls.files()), connect)


def bearer(token: str) -> Metadata:
    """Return the metadata that presents a token."""
    return ((AUTHORIZATION, f"Bearer {token}"),)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """Return the error's ErrorInfo, or None if gRPC or a proxy ended the call, not the server's own code."""
    info = error_details_pb2.ErrorInfo()
    return info if any(_unpacked(detail, info) and info.domain == DOMAIN for detail in _details(error)) else None


def was_cut(error: grpc.RpcError) -> bool:
    """Return whether the call was ended by a broken connection or a proxy, not by the server's own code.

    A proxy ends a call with INTERNAL if the connection to its server breaks after the response has begun.
    """
    return error.code() in _CUT and error_info(error) is None


def retry_seconds(error: grpc.RpcError) -> float:
    """Return how many seconds the server asks to wait before a retry: at most 60, and 0 if its error doesn't say."""
    retry = error_details_pb2.RetryInfo()
    if not any(_unpacked(detail, retry) for detail in _details(error)):
        return 0.0
    delay = retry.retry_delay
    return float(min(max(delay.seconds + delay.nanos / 1e9, 0.0), _LONGEST_RETRY_SECONDS))


def _details(error: grpc.RpcError) -> Iterator[Any]:
    # `grpc` and `grpc.aio` have different types for metadata.
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with suppress(DecodeError):
                yield from status_pb2.Status.FromString(value).details


def _unpacked(detail: any_pb2.Any, message: Message) -> bool:
    """Fill a message from a detail, and return whether the detail is a well-formed message of that type."""
    try:
        return detail.Unpack(message)
    except DecodeError:
        return False
