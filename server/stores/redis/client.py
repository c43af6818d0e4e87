"""A client for Redis that calls a function, the greeting, on each new connection before its first use."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from server.stores.redis.place import RedisPlace

# How long a socket waits for Redis, or for a sentinel, in seconds. An operation may take one second in total, so an
# unavailable sentinel must not use that up.
_SOCKET_SECONDS = 1.0
_SENTINEL_SECONDS = 0.25

Greeting = Callable[[AbstractConnection], Awaitable[None]]


def connect(place: RedisPlace, greet: Greeting) -> Redis:
    """Return a client that connects on first use and never retries.

    Args:
        greet: called on each new connection after authentication. Its exception fails the operation that needed the
            connection.
    """

    async def on_connect(connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
            await greet(connection)
        except BaseException:
            # A connection whose greeting failed, or was cancelled, must not be used.
            await connection.disconnect(nowait=True)
            raise

    options: dict[str, Any] = {
        "db": place.database,
        "username": place.user,
        "password": None if place.password is None else place.password.reveal(),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _SOCKET_SECONDS,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "client_name": "cellexport",
        "driver_info": None,
        "redis_connect_func": on_connect,
    }
    if place.service:
        waits = {"socket_timeout": _SENTINEL_SECONDS, "socket_connect_timeout": _SENTINEL_SECONDS}
        once = {"retry": Retry(NoBackoff(), 0), "protocol": 2}
        sentinel = Sentinel(list(place.hosts), sentinel_kwargs=waits | once)
        client: Redis = sentinel.master_for(place.service, **options)
        return client
    host, port = place.hosts[0]
    if place.tls is not None:
        options |= {"ssl": True, "ssl_check_hostname": True, **place.tls}
    return Redis(host=host, port=port, **options)
