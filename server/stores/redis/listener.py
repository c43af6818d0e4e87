"""The subscription to the changes that any server makes in Redis."""

import asyncio
import logging
import random
from typing import Never

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from server.stores.changes import Changes
from server.stores.redis import scripts

# How often the connection is pinged while no change arrives, in seconds.
_PING_SECONDS = 0.5
_RECONNECT_SECONDS = 0.5

_log = logging.getLogger(__name__)


async def listen(client: Redis, changes: Changes) -> Never:
    """Notify this server's subscribers of changes in Redis until cancelled.

    After each gap in the subscription, notify all subscribers, because changes may have been missed.
    """
    while True:
        try:
            async with client.pubsub() as subscription:
                await _pass_on(subscription, changes)
        except (exceptions.RedisError, OSError, TimeoutError):
            # `exports.expiry` logs an unavailable store.
            pass
        except Exception:
            # The listener must go on: otherwise every subscriber would wait for ever.
            _log.exception("unexpected error in the subscription to Redis")
        changes.notify_all()
        await asyncio.sleep(_RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret


async def _pass_on(subscription: PubSub, changes: Changes) -> None:
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
            changes.notify_all()
        elif message["type"] == "message" and message["data"] == scripts.QUEUED:
            changes.notify_queue()
        elif message["type"] == "message":
            changes.notify(message["data"].decode(errors="replace"))
