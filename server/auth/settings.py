"""The settings for the kinds of tokens that the server accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellexport.environment import Environment, Secret
from server.auth.issuers import SETTING, Issuer, read_issuers

# The lengths of an AES key, in bytes.
_AES_KEYS = (16, 24, 32)


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """The secrets and issuers of the kinds of tokens. A kind of token without a secret or an issuer is off."""

    master_token: Secret | None
    unit_secret: Secret | None
    issuers: Mapping[str, Issuer]

    @classmethod
    def read(cls, environment: Environment) -> "TokenSettings":
        """Read the settings from an environment. Raise `SettingError` if a value or a file is invalid."""
        issuers = environment.text(SETTING, "")
        return cls(
            master_token=environment.secret("CELLEXPORT_MASTER_TOKEN"),
            unit_secret=environment.key("CELLEXPORT_UNIT_SECRET", _AES_KEYS),
            issuers=read_issuers(Path(issuers).absolute()) if issuers else {},
        )

    def any(self) -> bool:
        """Return whether any token can be accepted."""
        return bool(self.master_token or self.unit_secret or self.issuers)
