"""A client for Redis whose every connection is looked at before it is used."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from server.stores.redis.place import RedisPlace

# Every operation has a budget of one second in all; a sentinel that is away must not use it up.
_SOCKET_SECONDS = 1.0
_SENTINEL_SECONDS = 0.25

Greeting = Callable[[AbstractConnection], Awaitable[None]]


def connect(place: RedisPlace, greet: Greeting) -> Redis:
    """A client that connects when it is used, and never tries again by itself.

    Args:
        greet: what to do first on each new connection, after it has been authenticated; what it raises is raised by
            whatever wanted the connection.
    """

    async def on_connect(connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
            await greet(connection)
        except BaseException:
            # A connection that was not looked at must not be used, even where the look was only cut short.
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
