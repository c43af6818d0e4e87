"""Hears from Redis which cells have changed, whoever changed them."""

import asyncio
import logging
import random
from typing import Never

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from server.stores.changes import Changes
from server.stores.redis import scripts as scripts

# How often the connection is asked whether it lives.
_PING_SECONDS = 0.5
_RECONNECT_SECONDS = 0.5

_log = logging.getLogger(__name__)


async def listen(client: Redis, changes: Changes) -> Never:
    """Pass on what is told until cancelled. Whatever is told while we don't hear it, all are told afterwards."""
    while True:
        try:
            async with client.pubsub() as subscription:
                await _hear(subscription, changes)
        except (exceptions.RedisError, OSError, TimeoutError):
            # Whoever checks the store says so.
            pass
        except Exception:
            # Whatever it was: a listener that has ended would leave everybody waiting.
            _log.exception("unexpected error")
        changes.tell_all()
        await asyncio.sleep(_RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - guards nothing


async def _hear(subscription: PubSub, changes: Changes) -> None:
    await subscription.subscribe(scripts.CHANNEL)
    unanswered = 0
    while unanswered < 2:
        message = await subscription.get_message(timeout=_PING_SECONDS)
        if message is None:
            unanswered += 1
            await subscription.ping()
            continue
        unanswered = 0
        if message["type"] == "subscribe" or message["data"] == scripts.EVERYTHING:
            changes.tell_all()
        elif message["type"] == "message":
            changes.tell(message["data"].decode(errors="replace"))
