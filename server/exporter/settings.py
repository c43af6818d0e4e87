"""The exporter's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellexport import client
from cellexport.environment import Environment, SecretSource, SettingError


@dataclass(frozen=True, slots=True)
class Settings:
    unit_dir: Path
    target: str
    tls: client.Tls | None
    token: SecretSource

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Settings":
        """Read the settings from an environment. Raise `SettingError` if a value is invalid."""
        environment = Environment(variables)
        token = environment.secret_source("CELLEXPORT_EXPORTER_TOKEN") or environment.secret_source(
            "CELLEXPORT_MASTER_TOKEN"
        )
        if token is None:
            raise SettingError(
                "CELLEXPORT_EXPORTER_TOKEN: is not set, nor is CELLEXPORT_MASTER_TOKEN. Set one of them."
            )
        return cls(
            unit_dir=environment.directory("CELLEXPORT_UNIT_DIR", "var/unit"),
            target=client.target(environment),
            tls=client.tls(environment),
            token=token,
        )
