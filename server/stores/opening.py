"""Which store there is: the one that `CELLEXPORT_STORE` names."""

from collections.abc import Callable
from pathlib import Path

from server.exports.store import Store
from server.stores.redis.place import RedisPlace
from server.stores.sqlite.store import SqliteStore


async def open_store(place: Path | RedisPlace, clock: Callable[[], int]) -> Store:
    """Open the store in a file, or in Redis.

    Args:
        clock: milliseconds since 1970.

    Raises:
        StoreError: if it can't be used.
    """
    if isinstance(place, Path):
        return await SqliteStore.open(place)
    # Only here: whoever has a file need not have 10 MB of a client for Redis in memory.
    from server.stores.redis.store import RedisStore

    return await RedisStore.open(place, clock)
