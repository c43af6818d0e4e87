"""Settings from environment variables: each value is checked when it is read, and errors name the variable."""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from cellexport.address import Address

# The longest secret, in characters.
_SECRET_LIMIT = 4096


class SettingError(Exception):
    """Raised when a setting is invalid. Its text names the variable, says what to do, and holds no secret."""


class Secret:
    """A text that logs, errors and dumps of the settings show as `Secret(***)`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def reveal_bytes(self) -> bytes:
        """Return the exact bytes of the variable or the file that held the secret."""
        return self._text.encode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        return "Secret(***)"


class Environment:
    """Environment variables, with a method for each type of value.

    An empty variable counts as not set. Every method raises `SettingError` for an invalid value.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def names(self) -> Collection[str]:
        """Return the names of all variables."""
        return self._variables.keys()

    def text(self, name: str, default: str) -> str:
        return self._variables.get(name, "") or default

    def choice(self, name: str, *choices: str) -> str:
        """Return one of the choices. The first is the default."""
        value = self.text(name, choices[0])
        if value not in choices:
            raise SettingError(f"{name}: must be one of {', '.join(choices)}.")
        return value

    def seconds(self, name: str, default: float, *, minimum: float, maximum: float) -> float:
        return self.number(name, default, minimum=minimum, maximum=maximum, what=" of seconds")

    def number(self, name: str, default: float, *, minimum: float, maximum: float, what: str = "") -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not minimum <= number <= maximum:
            raise SettingError(f"{name}: must be a number{what} from {minimum:g} to {maximum:g}.")
        return number

    def path(self, name: str, default: str | Path) -> Path:
        return Path(self.text(name, str(default))).absolute()

    def directory(self, name: str, default: str | Path) -> Path:
        path = self.path(name, default)
        if not path.is_dir():
            raise SettingError(f"{name}: {path} is not a directory. Make it, or name an existing directory.")
        return path

    def url(self, name: str, default: str, *, placeholder: str = "") -> str:
        """Return an http(s) URL, with a slash added at its end if missing. The placeholder may be anywhere in it."""
        value = self.text(name, default)
        try:
            parts = urlsplit(value.replace(placeholder, "x") if placeholder else value)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or parts.username or not (value.isascii() and value.isprintable()):
            raise SettingError(f"{name}: must be a URL like https://unit1.example/ without query or user.")
        if set(value) & set(' "\\<>'):
            raise SettingError(f"{name}: must be a URL like https://unit1.example/, without blanks or quotes.")
        return value if value.endswith("/") else value + "/"

    def listen(self, name: str, default: str) -> Address:
        """Return an address from `host:port`, `[v6 host]:port` or `unix:/path`. For port 0 the system chooses one."""
        value = self.text(name, default)
        if value.startswith("unix:"):
            path = value.removeprefix("unix:").replace("//", "/", 1)
            if not path.startswith("/"):
                raise SettingError(f"{name}: a unix socket needs an absolute path, like unix:/run/export.sock.")
            return Address("", 0, path)
        host, _, port = value.rpartition(":")
        if not host or not (port.isascii() and port.isdecimal() and len(port) <= 5) or int(port) > 65535:
            raise SettingError(f"{name}: must be host:port, like {default}.")
        return Address(host.removeprefix("[").removesuffix("]"), int(port))

    def secret(self, name: str) -> Secret | None:
        """Return a secret from the variable, or from the file that `{name}_FILE` names; None if neither is set."""
        name, value = self.secret_text(name)
        if not value:
            return None
        if not (value.isascii() and value.isprintable()) or " " in value or len(value) > _SECRET_LIMIT:
            raise SettingError(f"{name}: must be at most {_SECRET_LIMIT} printable ASCII characters without blanks.")
        return Secret(value)

    def secret_source(self, name: str) -> "SecretSource | None":
        """Return the source of a secret, whose file may be replaced while the program runs; None if it is not set."""
        secret, file = self.secret(name), self.text(f"{name}_FILE", "")
        return None if secret is None else SecretSource(self, name, secret, renewable=bool(file))

    def key(self, name: str, sizes: Collection[int]) -> Secret | None:
        """Return a secret like `secret`, with any bytes; its length must be one of `sizes`. None if it is not set."""
        name, value = self.secret_text(name)
        if value and len(Secret(value).reveal_bytes()) not in sizes:
            raise SettingError(f"{name}: must be {' or '.join(map(str, sorted(sizes)))} bytes long.")
        return Secret(value) if value else None

    def secret_text(self, name: str) -> tuple[str, str]:
        """Return the variable that a secret came from, and the secret; the secret is empty if neither is set."""
        value, file = self.text(name, ""), self.text(f"{name}_FILE", "")
        if value and file:
            raise SettingError(f"{name}: is set, and so is {name}_FILE. Set one of them.")
        if not file:
            return name, value
        return f"{name}_FILE", self._first_line(f"{name}_FILE", Path(file))

    @staticmethod
    def _first_line(name: str, file: Path) -> str:
        try:
            with file.open("rb") as opened:
                value = opened.read(_SECRET_LIMIT + 2).rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        except OSError as error:
            # Don't show the file's name: it may be the secret itself, set in the wrong variable.
            raise SettingError(f"{name}: the file can't be read ({error.strerror}).") from error
        if not value:
            raise SettingError(f"{name}: the file is empty.")
        return value


class SecretSource:
    """A secret from a variable, or from a file that is read for each use: tokens of a service mesh live for minutes."""

    def __init__(self, environment: Environment, name: str, secret: Secret, *, renewable: bool) -> None:
        self._environment = environment
        self._name = name
        self._latest = secret
        self.renewable = renewable

    def latest(self) -> Secret:
        """Return the current secret, or the last valid one if the file can't be read or is invalid."""
        if self.renewable:
            with suppress(SettingError):
                self._latest = self._environment.secret(self._name) or self._latest
        return self._latest


def metrics_listen(environment: Environment, name: str) -> Address | None:
    """Return the address to serve metrics on, from the variable `name`; None if the variable is not set.

    Raises:
        SettingError: for an invalid value, or if other machines can reach the address and plaintext is not allowed.
    """
    if not environment.text(name, ""):
        return None
    address = environment.listen(name, "127.0.0.1:9100")
    if address.path or not address.port:
        raise SettingError(f"{name}: must be host:port, like 127.0.0.1:9100.")
    if not (address.is_local or plaintext_allowed(environment)):
        raise SettingError(
            f"{name}: {address} can be reached from other machines, and would be plaintext. "
            "Listen on 127.0.0.1, or set CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    return address


def plaintext_allowed(environment: Environment) -> bool:
    """Return whether the operator allows plaintext to and from other machines (`CELLEXPORT_PLAINTEXT`)."""
    return environment.choice("CELLEXPORT_PLAINTEXT", "loopback", "allow") == "allow"
