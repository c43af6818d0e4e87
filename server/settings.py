"""The server's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellexport.address import Address
from cellexport.environment import Environment, Secret, SettingError, metrics_listen, plaintext_allowed
from cellexport.program import tracing
from cellexport.program.unit_urls import UnitUrls
from server.auth.issuers import SETTING, Issuer, read_issuers
from server.rpc.listener import GrpcListener
from server.stores.redis.place import SCHEMES, RedisPlace

_AES_KEYS = (16, 24, 32)
_STORE = "CELLEXPORT_STORE"


@dataclass(frozen=True, slots=True)
class Settings:
    urls: UnitUrls
    unit_dir: Path
    store: Path | RedisPlace
    listener: GrpcListener
    tokens: "TokenSettings"
    lease_seconds: float
    queue_seconds: float
    queue_limit: int
    watch_keepalive_seconds: float
    drain_seconds: float
    reflection: bool
    # None if it is off.
    event_log: Path | None
    # None if there are none.
    metrics: Address | None
    traces: bool

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Settings":
        """Read the settings from an environment. Raises `SettingError` for a bad value."""
        environment = Environment(variables)
        unit_dir = environment.directory("CELLEXPORT_UNIT_DIR", "var/unit")
        listener = GrpcListener.read(environment)
        if not (unit_dir / "cells").is_dir():
            raise SettingError(f"CELLEXPORT_UNIT_DIR: {unit_dir} has no directory cells. Make it, or name a unit.")
        return cls(
            urls=UnitUrls.read(environment),
            unit_dir=unit_dir,
            store=_store(environment, unit_dir),
            listener=listener,
            tokens=TokenSettings.read(environment),
            lease_seconds=environment.seconds("CELLEXPORT_LEASE_SECONDS", 15, minimum=1, maximum=3600),
            queue_seconds=environment.seconds("CELLEXPORT_QUEUE_SECONDS", 3600, minimum=1, maximum=7 * 86400),
            queue_limit=int(environment.number("CELLEXPORT_QUEUE_LIMIT", 1000, minimum=1, maximum=10_000)),
            watch_keepalive_seconds=environment.seconds(
                "CELLEXPORT_WATCH_KEEPALIVE_SECONDS", 45, minimum=1, maximum=3600
            ),
            drain_seconds=environment.seconds("CELLEXPORT_DRAIN_SECONDS", 0, minimum=0, maximum=600),
            reflection=environment.choice("CELLEXPORT_REFLECTION", "on", "off") == "on",
            event_log=_event_log(environment, unit_dir),
            metrics=metrics_listen(environment, "CELLEXPORT_GRPC_METRICS_LISTEN"),
            traces=tracing.are_on(environment),
        )


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Which tokens there are: the kinds that are None, or have no issuer, are off."""

    master_token: Secret | None
    unit_secret: Secret | None
    issuers: Mapping[str, Issuer]

    @classmethod
    def read(cls, environment: Environment) -> "TokenSettings":
        """Read what tells good tokens from bad ones. Raises `SettingError` for a bad value."""
        issuers = environment.text(SETTING, "")
        return cls(
            master_token=environment.secret("CELLEXPORT_MASTER_TOKEN"),
            unit_secret=environment.key("CELLEXPORT_UNIT_SECRET", _AES_KEYS),
            issuers=read_issuers(Path(issuers).absolute()) if issuers else {},
        )

    def any(self) -> bool:
        """Whether there is any token that is not refused."""
        return bool(self.master_token or self.unit_secret or self.issuers)


def _event_log(environment: Environment, unit_dir: Path) -> Path | None:
    value = environment.text("CELLEXPORT_EVENT_LOG", str(unit_dir / "log" / "event.log"))
    return None if value.lower() == "off" else Path(value).absolute()


def _store(environment: Environment, unit_dir: Path) -> Path | RedisPlace:
    """Where the store is. Its URL may hold a password, so it is never shown, and may be in a file."""
    name, url = environment.secret_text(_STORE)
    scheme, _, path = (url or f"sqlite:///{unit_dir / 'export.db'}").partition("://")
    if scheme in SCHEMES:
        return _redis(environment, name, url)
    if scheme != "sqlite" or not path.startswith("/") or path == "/":
        raise SettingError(f"{name}: must be sqlite:///file (sqlite:////file from the root), or redis://host:6379/0.")
    file = Path(path.removeprefix("/")).absolute()
    if not file.parent.is_dir():
        raise SettingError(f"{name}: {file.parent} is not a directory. Make it, or name another file.")
    return file


def _redis(environment: Environment, name: str, url: str) -> RedisPlace:
    place = RedisPlace.parse(name, url)
    if place.tls is None and not (place.is_local or plaintext_allowed(environment)):
        raise SettingError(
            f"{name}: {place} is, or may lead to, another machine, and what is said to it would be plaintext. "
            "Use rediss://, or set CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    return place
