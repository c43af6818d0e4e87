"""A channel to the server, done right: TLS, bounded reconnects and retries, no proxies.

For Python callers too:

    with client.channel("127.0.0.1:50051") as channel:
        stub = CellExportServiceStub(channel)
        stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(token), timeout=3)

To another machine: `client.channel("export.example:50051", client.Tls(ca=Path("ca.pem")))`.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from cellexport.address import is_loopback
from cellexport.environment import Environment, SettingError, plaintext_allowed
from cellexport.metadata import AUTHORIZATION, DOMAIN
from cellexport.pem import Pem, PemFile, PemFiles, PemReloader
from cellexport.renewing_channel import RenewingChannel

Metadata = tuple[tuple[str, str], ...]

# What is called the least backoff is how long a connection may take to come about: shorter, and a server that is only
# slow would never be reached.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    # A dead server is noticed within 30 seconds. The server allows twice as many pings (`server.rpc.listener`).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Else grpc sends two pings on a call that is silent, and then no more.
    ("grpc.http2.max_pings_without_data", 0),
)

# A server that is ending says CANCELLED to calls that reach it just then, and has not begun them.
_CUT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})

_CA, _CERT, _KEY, _NAME = (f"CELLEXPORT_GRPC_{part}" for part in ("CA", "CLIENT_CERT", "CLIENT_KEY", "SERVER_NAME"))


@dataclass(frozen=True, slots=True)
class Tls:
    """How to know the server, and to be known by it: PEM files, read anew when they change.

    Args:
        ca: the authorities that the server's certificate must be of. No others count.
        certificate: what to present, and the chain to it, with `key`; None where the server asks for none.
        server_name: the name in the server's certificate, where it isn't the target's.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def files(self) -> PemFiles:
        """The files; what is wrong with them is told with the names of the settings."""
        return PemFiles(
            chain=PemFile(_CERT, self.certificate) if self.certificate else None,
            key=PemFile(_KEY, self.key) if self.key else None,
            authorities=PemFile(_CA, self.ca),
        )


def tls(environment: Environment, *, check_files: bool = True) -> Tls | None:
    """TLS to the server (`CELLEXPORT_GRPC_CA` and its kin), or None for plaintext.

    Args:
        check_files: whether files that are no good are a bad value.

    Raises:
        SettingError: if a file is no good, or is of no use.
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
    """The server to call (`CELLEXPORT_GRPC_TARGET`, or else where the server listens).

    Raises:
        SettingError: if it is on another machine, and neither is there TLS nor plaintext allowed; if it is a unix
            socket, and there is TLS, which isn't spoken there.
    """
    name = environment.text("CELLEXPORT_GRPC_TARGET", "") or environment.text(
        "CELLEXPORT_GRPC_LISTEN", "127.0.0.1:50051"
    )
    allowed = plaintext_allowed(environment)
    if environment.text(_CA, ""):
        if name.startswith("unix"):
            raise SettingError(f"{_CA}: {name} is a unix socket, where TLS is not spoken. Unset one of them.")
        if "," in name and not environment.text(_NAME, ""):
            raise SettingError(f"{_NAME}: a list of addresses has no name of its own. Set the one in the certificates.")
    elif not (_is_local(name) or allowed):
        raise SettingError(
            f"CELLEXPORT_GRPC_TARGET: {name} is another machine, and the call would be plaintext. "
            f"Set {_CA}, or CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    if name.startswith("unix:"):
        _require_closed_directory(Path(name.removeprefix("unix:")).parent)
    return name


def _require_closed_directory(directory: Path) -> None:
    """Who puts a socket of his own there would be given tokens. Whose directory it is, its server has looked at."""
    if directory.is_dir() and directory.stat().st_mode & stat.S_IWOTH:
        raise SettingError(
            f"CELLEXPORT_GRPC_TARGET: anybody may write to {directory}, and so put a socket of his own there. "
            "Let the server listen in a directory of its user's."
        )


def _is_local(name: str) -> bool:
    if name.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, separator, rest = name.partition("://")
    if set(name) & set("?#%") or (separator and (scheme not in ("dns", "ipv4", "ipv6") or rest[:1] != "/")):
        # Where such a name leads to, its scheme, a name server or grpc's own reading of it decides.
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
    """A channel to the server of that gRPC name. Make it after a fork, never before.

    Args:
        tls: None for plaintext.
        service_config: JSON that says how calls are balanced and tried again; `service_config.json` if left out.
        found_again_seconds: how long a server that is back may go unnoticed. One that is away is not knocked at more
            often than that.

    Raises:
        SettingError: if a file of `tls` is no good.
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
    """The metadata that presents a token."""
    return ((AUTHORIZATION, f"Bearer {token}"),)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """What the server says of an error, or None where it was not the server's own code that refused the call."""
    info = error_details_pb2.ErrorInfo()
    return info if any(detail.Unpack(info) and info.domain == DOMAIN for detail in _details(error)) else None


def was_cut(error: grpc.RpcError) -> bool:
    """Whether a call ended without the server's word: the connection broke, or a proxy on the way let go of it.

    What a proxy says of a connection that broke behind it, once an answer has begun, is INTERNAL.
    """
    return error.code() in _CUT and error_info(error) is None


def retry_seconds(error: grpc.RpcError) -> float:
    """How long the server wants to be left alone before the next try; 0 where it doesn't say."""
    retry = error_details_pb2.RetryInfo()
    if any(detail.Unpack(retry) for detail in _details(error)):
        return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def _details(error: grpc.RpcError) -> Iterator[Any]:
    # Of one type with `grpc`, and of another with `grpc.aio`.
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            yield from status_pb2.Status.FromString(value).details
