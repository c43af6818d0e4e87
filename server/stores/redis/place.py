"""The address of the Redis store, parsed from `CELLEXPORT_STORE`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from cellexport.address import is_loopback
from cellexport.environment import Secret, SettingError

SCHEMES = ("redis", "rediss", "redis+sentinel")

_PORT, _SENTINEL_PORT = 6379, 26379
# The parameters of a rediss:// URL: files with certificates.
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class _UrlError(Exception):
    """Raised when a URL is malformed. Its text contains nothing of the URL, which may hold a password."""


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """The address of a Redis, or of the sentinels that know it. Its `str()` contains no secret."""

    hosts: tuple[tuple[str, int], ...]
    database: int
    user: str | None
    password: Secret | None
    # The sentinels' name for the Redis; empty without sentinels.
    service: str = ""
    # Paths of certificate files by redis-py's parameter names; None without TLS.
    tls: Mapping[str, str] | None = None

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.service}" if self.service else hosts

    @property
    def is_local(self) -> bool:
        """Return whether all traffic stays on this machine. Sentinels may lead anywhere."""
        return not self.service and all(is_loopback(host) for host, _ in self.hosts)

    @classmethod
    def parse(cls, name: str, url: str) -> "RedisPlace":
        """Parse `redis://[[user]:password@]host[:port][/database]`, the same with `rediss`, or
        `redis+sentinel://[[user]:password@]host[:port],…/service[/database]`.

        Args:
            name: the name of the setting, for the error's text.

        Raises:
            SettingError: if the URL is malformed.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            # urllib's error may contain the password.
            parts = urlsplit("")
        try:
            return cls._parse(parts)
        except _UrlError as error:
            why = str(error)
        raise SettingError(
            f"{name}: must be like redis://user:password@host:6379/0, rediss://… "
            f"or redis+sentinel://host:26379,host:26379/service/0 ({why}). "
            "In a password, write / as %2F, @ as %40, and so on."
        )

    @classmethod
    def _parse(cls, parts: SplitResult) -> "RedisPlace":
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        is_sentinel = parts.scheme == "redis+sentinel"
        path = parts.path.strip("/").split("/")
        service = path.pop(0) if is_sentinel else ""
        if is_sentinel and not service:
            raise _UrlError("the service is missing")
        if len(path) > 1 or parts.fragment:
            raise _UrlError("the part after the host is too long")
        return cls(
            hosts=tuple(_host(host, _SENTINEL_PORT if is_sentinel else _PORT) for host in hosts.split(",")),
            database=_number("database", path[0] if path and path[0] else "0", 10_000),
            user=unquote(user) or None,
            password=Secret(unquote(password)) if password else None,
            service=unquote(service),
            tls=_tls(parts.query, secure=parts.scheme == "rediss"),
        )


def _host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise _UrlError("the host or the port is missing or malformed")
    return host, port or default_port


def _number(what: str, text: str, largest: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:6]) > largest:
        raise _UrlError(f"the {what} is not a number")
    return int(text)


def _tls(query: str, *, secure: bool) -> Mapping[str, str] | None:
    files = {key: values[-1] for key, values in parse_qs(query).items()}
    if not secure:
        if files:
            raise _UrlError("parameters after ? need rediss://")
        return None
    for key, file in files.items():
        if key not in _TLS_FILES:
            raise _UrlError(f"the parameters after ? may be {', '.join(_TLS_FILES)}")
        if not Path(file).is_file():
            raise _UrlError(f"{key} is not a file")
    return files
