"""How a server ends: load balancers are told first, then waiting calls, and those that work may finish."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from server.health import Health

# How long calls that are being served may take to end.
LONGEST_GRACE_SECONDS = 8.0

_log = logging.getLogger(__name__)


class Drain:
    """
    Args:
        seconds: for how long calls are served as ever after health says NOT_SERVING.
        closing: what sends its waiting calls away, called in this order before the server refuses new calls.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        health: Health,
        *,
        seconds: float,
        closing: Sequence[Callable[[], Awaitable[None] | None]],
    ) -> None:
        self._server = server
        self._health = health
        self._seconds = seconds
        self._closing = closing

    async def run(self) -> None:
        """Drain, and return when no call is served any more: at the latest `seconds` and the grace from now."""
        self._health.drain()
        _log.info("draining: health is NOT_SERVING", extra={"seconds": self._seconds})
        await asyncio.sleep(self._seconds)
        _log.info("ending: no call is taken any more, and those that wait are sent away")
        for close in self._closing:
            sending_away = close()
            if sending_away is not None:
                await sending_away
        await self._server.stop(LONGEST_GRACE_SECONDS)
        _log.info("ended")
