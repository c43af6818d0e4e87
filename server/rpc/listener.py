"""The gRPC port: its address, its certificate, and the limits of a connection."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from cellexport.address import Address
from cellexport.environment import Environment
from cellexport.pem import Pem, PemFiles, PemReloader
from cellexport.program.listening import SOCKET_MODE, Listener

# How many calls may be in progress in total. gRPC ends every further call with RESOURCE_EXHAUSTED.
MOST_CALLS = 25_000

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A second server on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 2000),
    # A client that vanished without closing its connection is noticed within 80 seconds.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A client that pings more often is disconnected. Our own client (`cellexport.client`) pings half as often as this.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class ListenError(Exception):
    """Raised when the server can't listen on its address. The text names the setting and the address."""


@dataclass(frozen=True, slots=True)
class GrpcListener:
    """The settings of the gRPC port.

    The server asks the client to close a connection at the age of `age_seconds`, and closes it `grace_seconds` later.
    """

    listener: Listener
    age_seconds: float
    grace_seconds: float

    @classmethod
    def read(cls, environment: Environment) -> "GrpcListener":
        """Read the settings. Raise `SettingError` for an invalid value."""
        return cls(
            listener=Listener.read(environment, "GRPC", "127.0.0.1:50051"),
            age_seconds=environment.seconds("CELLEXPORT_CONNECTION_AGE_SECONDS", 3600, minimum=1, maximum=7 * 86400),
            grace_seconds=environment.seconds("CELLEXPORT_CONNECTION_GRACE_SECONDS", 45, minimum=1, maximum=86400),
        )

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the options for grpc's server."""
        return (
            *_OPTIONS,
            ("grpc.max_connection_age_ms", int(self.age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", int(self.grace_seconds * 1000)),
        )

    def listen(self, server: grpc.aio.Server) -> str:
        """Listen on the address, and return it. For port 0, return it with the port that the system chose.

        Raises:
            ListenError: if the address can't be listened on.
        """
        address = self.listener.address
        self.listener.warn_if_wide()
        try:
            # Probe the address first: grpc reports a port in use only in its own log.
            address.probe()
            if self.listener.tls:
                port = server.add_secure_port(str(address), _credentials(self.listener.tls))
            else:
                port = server.add_insecure_port(str(address))
            if address.path:
                Path(address.path).chmod(SOCKET_MODE)
        except (OSError, RuntimeError) as error:
            raise taken("CELLEXPORT_GRPC_LISTEN", address) from error
        return str(address) if address.path else str(type(address)(address.host, port))


def taken(name: str, address: Address) -> ListenError:
    """Return the error for an address that can't be listened on. `name` is the setting with the address."""
    return ListenError(
        f"{name}: {address} can't be listened on. "
        "Another program may be using it: stop that one, or name another address."
    )


def _credentials(files: PemFiles) -> grpc.ServerCredentials:
    reloader = PemReloader(files)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return new certificates if the files have changed. grpc calls this for each connection, on its own thread."""
        fresh = reloader.renewed()
        return None if fresh is None else _configuration(fresh)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(reloader.latest),
        renewed,  # type: ignore[arg-type]  # None means no change; grpc's stubs lack that
        require_client_authentication=files.authorities is not None,
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.authorities or None)
