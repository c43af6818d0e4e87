"""The server's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellexport.address import Address
from cellexport.environment import Environment, SettingError, metrics_listen
from cellexport.program import traces
from cellexport.program.unit_urls import UnitUrls
from server.auth.settings import TokenSettings
from server.rpc.listener import GrpcListener
from server.stores.opening import read_place
from server.stores.redis.place import RedisPlace


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a server. Durations are in seconds."""

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
    # None if the event log is off.
    event_log: Path | None
    # None if no metrics are served.
    metrics: Address | None
    traces: bool

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Settings":
        """Read the settings from environment variables. Raise `SettingError` for an invalid value."""
        environment = Environment(variables)
        unit_dir = environment.directory("CELLEXPORT_UNIT_DIR", "var/unit")
        listener = GrpcListener.read(environment)
        if not (unit_dir / "cells").is_dir():
            raise SettingError(
                f"CELLEXPORT_UNIT_DIR: {unit_dir} has no directory named cells. Create it, or set another unit."
            )
        return cls(
            urls=UnitUrls.read(environment),
            unit_dir=unit_dir,
            store=read_place(environment, unit_dir),
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
            traces=traces.are_on(environment),
        )


def _event_log(environment: Environment, unit_dir: Path) -> Path | None:
    value = environment.text("CELLEXPORT_EVENT_LOG", str(unit_dir / "log" / "event.log"))
    return None if value.lower() == "off" else Path(value).absolute()
