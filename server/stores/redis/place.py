"""Where the Redis store is, as `CELLEXPORT_STORE` says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from cellexport.address import is_loopback
from cellexport.environment import Secret, SettingError

SCHEMES = ("redis", "rediss", "redis+sentinel")

_PORT, _SENTINEL_PORT = 6379, 26379
# What may follow the `?` of a rediss:// URL: files, for those whose certificates are their own.
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class _UrlError(Exception):
    """Raised when a URL is none of ours. Its text holds nothing of the URL."""


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """A Redis, or the sentinels that know where it is. Its text holds no secret."""

    hosts: tuple[tuple[str, int], ...]
    database: int
    user: str | None
    password: Secret | None
    # What the sentinels call it; empty without sentinels.
    service: str = ""
    # Files, by redis-py's names for them; None without TLS.
    tls: Mapping[str, str] | None = None

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.service}" if self.service else hosts

    @property
    def is_local(self) -> bool:
        """Whether nothing of it leaves this machine. Where sentinels lead to can't be told before."""
        return not self.service and all(is_loopback(host) for host, _ in self.hosts)

    @classmethod
    def parse(cls, name: str, url: str) -> "RedisPlace":
        """Read `redis://[[user]:password@]host[:port][/database]`, the same with `rediss`, or
        `redis+sentinel://[[user]:password@]host[:port],…/service[/database]`.

        Args:
            name: of the setting.

        Raises:
            SettingError: if it is none of them.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            # What urllib says may hold the password.
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
            raise _UrlError("no service is named")
        if len(path) > 1 or parts.fragment:
            raise _UrlError("there is too much after the host")
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
        raise _UrlError(f"the {what} is no number")
    return int(text)


def _tls(query: str, *, secure: bool) -> Mapping[str, str] | None:
    files = {key: values[-1] for key, values in parse_qs(query).items()}
    if not secure:
        if files:
            raise _UrlError("what follows the ? is for rediss://")
        return None
    for key, file in files.items():
        if key not in _TLS_FILES:
            raise _UrlError(f"after the ? may follow {', '.join(_TLS_FILES)}")
        if not Path(file).is_file():
            raise _UrlError(f"{key} names no file")
    return files
