"""The settings of the gateway."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from cellexport import client
from cellexport.address import Address
from cellexport.environment import Environment, SettingError, metrics_listen
from cellexport.program import traces
from cellexport.program.listening import Listener
from cellexport.program.unit_urls import UnitUrls


@dataclass(frozen=True, slots=True)
class Settings:
    urls: UnitUrls
    target: str
    tls: client.Tls | None
    listener: Listener
    personium_version: str
    x_override: bool
    # The address of the metrics port; None if metrics are off.
    metrics: Address | None
    traces: bool

    @classmethod
    def read(cls, variables: Mapping[str, str], *, check_files: bool = True) -> "Settings":
        """Read the settings from an environment.

        Args:
            check_files: whether to raise for invalid TLS files.

        Raises:
            SettingError: if a value or a checked file is invalid.
        """
        environment = Environment(variables)
        listener = Listener.read(environment, "HTTP", "127.0.0.1:8080", check_files=check_files)
        address = listener.address
        if not (address.path or address.port):
            raise SettingError("CELLEXPORT_HTTP_LISTEN: must be host:port, like 127.0.0.1:8080.")
        if address.host == "localhost":
            listener = Listener(Address("127.0.0.1", address.port), listener.tls)
        elif not (address.path or _is_number(address.host)):
            raise SettingError("CELLEXPORT_HTTP_LISTEN: needs the host's number, like 127.0.0.1:8080.")
        version = environment.text("CELLEXPORT_PERSONIUM_VERSION", "1.8.3")
        if not (version.isascii() and version.isprintable()):
            raise SettingError("CELLEXPORT_PERSONIUM_VERSION: must be printable ASCII, like 1.8.3.")
        return cls(
            urls=UnitUrls.read(environment),
            target=client.target(environment),
            tls=client.tls(environment, check_files=check_files),
            listener=listener,
            personium_version=version,
            x_override=environment.choice("CELLEXPORT_X_OVERRIDE", "on", "off") == "on",
            metrics=metrics_listen(environment, "CELLEXPORT_HTTP_METRICS_LISTEN"),
            traces=traces.are_on(environment),
        )


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
