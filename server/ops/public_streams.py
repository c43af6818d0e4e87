"""Limits for the streams that need no token (health, reflection): their number, duration, and end at shutdown."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from cellexport import request_key
from server.refusals import Refusal, Refused
from server.rpc.abort import abort
from server.rpc.call_context import Context


class PublicStreams:
    """The open streams of one service. Refusals are not logged: strangers could fill the log.

    Args:
        most: how many streams may be open at once.
        seconds: how long each may last; None means no limit.
    """

    def __init__(self, *, most: int, seconds: float | None = None) -> None:
        self._most = most
        self._seconds = seconds
        self._open: set[asyncio.Timeout] = set()
        self._closing = False

    def close(self) -> None:
        """End all streams with SERVER_SHUTDOWN and refuse new ones."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for stream in self._open:
            if not stream.expired():
                stream.reschedule(now)

    @asynccontextmanager
    async def room(self, context: Context) -> AsyncIterator[None]:
        """Hold a place for a stream while the context is open.

        Abort the call if no place is free, when it has lasted `seconds`, or when the server shuts down.
        """
        if self._closing:
            await _refuse(context, Refusal.SERVER_SHUTDOWN)
        if len(self._open) >= self._most:
            await _refuse(context, Refusal.TOO_MANY_WATCHES)
        try:
            async with asyncio.timeout(self._seconds) as stream:
                self._open.add(stream)
                try:
                    yield
                finally:
                    self._open.discard(stream)
        except TimeoutError:
            if self._closing:
                await _refuse(context, Refusal.SERVER_SHUTDOWN)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The stream was open for too long.")


async def _refuse(context: Context, refusal: Refusal) -> None:
    await abort(context, Refused(refusal), request_key.generate())
