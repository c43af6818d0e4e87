"""The drain of a server: first health turns NOT_SERVING, then waiting calls are refused, then running calls finish."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from server.ops.health import Health
from server.rpc.in_flight import CallsInFlight

# How long running calls may take to finish, in seconds, after the server has begun to refuse new calls.
LONGEST_GRACE_SECONDS = 8.0
# If no call has run for this long, in seconds, while gRPC still holds calls, gRPC will never serve those calls.
# They are cancelled.
_LOST_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Drain:
    """The steps of a server's shutdown.

    Args:
        calls: counts the running calls.
        seconds: how long new calls are still served after health turned NOT_SERVING.
        closing: functions that each end the waiting calls or streams of one part of the server. They are called in this
            order before the server refuses new calls.
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
        """Drain, and return when no call is running: at the latest after `seconds` and the grace of 8 seconds."""
        self._health.drain()
        _log.info("draining: health is NOT_SERVING", extra={"seconds": self._seconds})
        await asyncio.sleep(self._seconds)
        _log.info("shutting down: refusing new calls and ending waiting calls")
        for close in self._closing:
            closed = close()
            if closed is not None:
                await closed
        await self._stop()
        _log.info("stopped")

    async def _stop(self) -> None:
        """Let running calls finish, and cancel the calls that gRPC has lost.

        gRPC may lose a call that arrives in the instant of a stop: it neither serves the call nor refuses it, and would
        hold it until its deadline. Such a call ends with CANCELLED, and its caller may retry.
        """
        stopping = asyncio.ensure_future(self._server.stop(LONGEST_GRACE_SECONDS))
        idle = asyncio.create_task(self._calls.wait_for_none(seconds=_LOST_SECONDS))
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if not stopping.done():
            await self._server.stop(None)
        await stopping
