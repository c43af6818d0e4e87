"""The choice of the store, by `CELLEXPORT_STORE`."""

from collections.abc import Callable
from pathlib import Path

from cellexport.environment import Environment, SettingError, plaintext_allowed
from server.exports.store import Store
from server.stores.redis.place import SCHEMES, RedisPlace
from server.stores.sqlite.store import SqliteStore

_STORE = "CELLEXPORT_STORE"


async def open_store(place: Path | RedisPlace, clock: Callable[[], int]) -> Store:
    """Open the store in a file, or in Redis.

    Args:
        clock: milliseconds since 1970.

    Raises:
        StoreError: if the store can't be used.
    """
    if isinstance(place, Path):
        return await SqliteStore.open(place)
    # Imported only when needed: the client for Redis takes 10 MB of memory.
    from server.stores.redis.store import RedisStore

    return await RedisStore.open(place, clock)


def read_place(environment: Environment, unit_dir: Path) -> Path | RedisPlace:
    """Return the place of the store: the path of a SQLite file, or the address of a Redis.

    The URL in the setting may contain a password: it is never shown, and may be in a file.

    Raises:
        SettingError: if the URL is invalid, or if it leads to another machine over plaintext that is not allowed.
    """
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
            f"{name}: {place} is, or may lead to, another machine, and the connection would be plaintext. "
            "Use rediss://, or set CELLEXPORT_PLAINTEXT=allow if the network itself protects it."
        )
    return place
