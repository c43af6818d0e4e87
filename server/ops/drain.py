"""How a server ends: load balancers are told first, then waiting calls, and those that work may finish."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from server.ops.health import Health
from server.rpc.in_flight import CallsInFlight

# How long calls that are being served may take to end.
LONGEST_GRACE_SECONDS = 8.0
# When no call has been served for so long, none that grpc may still have will ever be.
_LOST_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Drain:
    """
    Args:
        calls: those that are being served.
        seconds: for how long calls are served as ever after health says NOT_SERVING.
        closing: what sends its waiting calls away, called in this order before the server refuses new calls.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        health: Health,
        calls: CallsInFlight,
        *,
        seconds: float,
        closing: Sequence[Callable[[], Awaitable[None] | None]],
    ) -> None:
        self._server = server
        self._health = health
        self._calls = calls
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
        await self._stop()
        _log.info("ended")

    async def _stop(self) -> None:
        """Let the calls that are being served finish, and send away those that grpc has and nobody serves.

        A call that comes in the very instant of a stop may be one: grpc never hands it over, nor refuses it, and would
        wait until its caller's deadline. What sends it away is CANCELLED, and callers may ask again.
        """
        stopping = asyncio.ensure_future(self._server.stop(LONGEST_GRACE_SECONDS))
        idle = asyncio.create_task(self._calls.wait_for_none(seconds=_LOST_SECONDS))
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if not stopping.done():
            await self._server.stop(None)
        await stopping
