"""A channel to the server, done right: bounded reconnects, no proxies, metadata that cannot break a call.

For Python callers too:

    with client.channel("127.0.0.1:50051") as channel:
        stub = CellExportServiceStub(channel)
        stub.GetCellExport(GetCellExportRequest(cell="demo"), metadata=client.bearer(token), timeout=3)
"""

from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from cellexport.settings import Environment, SettingError, is_loopback, plaintext_allowed

UNIT_USER = "x-personium-unit-user"
AUTHORIZATION = "authorization"
COOKIE = "p-cookie"
COOKIE_PEER = "p-cookie-peer"
DOMAIN = "cellexport"

Metadata = tuple[tuple[str, str], ...]

# A server that is back is found again within a second, and one that is away is not knocked at more often than that.
# What is called the least backoff is how long a connection may take to come about: shorter, and a server that is only
# slow would never be reached.
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
)


def target(environment: Environment) -> str:
    """The server to call (`CELLEXPORT_GRPC_TARGET`, or else where the server listens).

    Raises:
        SettingError: if it is on another machine, and plaintext is not allowed.
    """
    name = environment.text("CELLEXPORT_GRPC_TARGET", "") or environment.text(
        "CELLEXPORT_GRPC_LISTEN", "127.0.0.1:50051"
    )
    allowed = plaintext_allowed(environment)
    if not (_is_local(name) or allowed):
        raise SettingError(
            f"CELLEXPORT_GRPC_TARGET: {name} is another machine, and the call would be plaintext. "
            "Name a server on this machine, or set CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    return name


def _is_local(name: str) -> bool:
    if name.startswith(("unix:", "unix-abstract:")):
        return True
    authority = name.rpartition("/")[2] if "://" in name else name.partition(":")[2] if name[:4] == "dns:" else name
    scheme, _, rest = authority.partition(":")
    if scheme in ("ipv4", "ipv6", "dns"):
        authority = rest
    hosts = [address.rpartition(":")[0] or address for address in authority.split(",")]
    return all(is_loopback(host.removeprefix("[").removesuffix("]")) for host in hosts)


def channel(name: str, *, service_config: str = "") -> grpc.Channel:
    """A plaintext channel to the server of that gRPC name. Make it after a fork, never before.

    Args:
        service_config: JSON that says how calls are balanced and tried again; grpc's own way if left out.
    """
    options: tuple[tuple[str, int | str], ...] = _OPTIONS
    if service_config:
        options += (("grpc.service_config", service_config),)
    return grpc.insecure_channel(name, options=options)


def bearer(token: str) -> Metadata:
    """The metadata that presents a token."""
    return ((AUTHORIZATION, f"Bearer {token}"),)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """What the server says of an error, or None where it was not the server's own code that refused the call."""
    info = error_details_pb2.ErrorInfo()
    return info if any(detail.Unpack(info) and info.domain == DOMAIN for detail in _details(error)) else None


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
