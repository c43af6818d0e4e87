"""Streams that nobody has to present a token for: so many at once, so long, and over when the server ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


class OpenStreams:
    """The open streams of one kind.

    Args:
        most: how many there may be at once.
        seconds: how long each may last; None is as long as its caller wants.
    """

    def __init__(self, *, most: int, seconds: float | None = None) -> None:
        self._most = most
        self._seconds = seconds
        self._open: set[asyncio.Timeout] = set()
        self._closing = False

    def close(self) -> None:
        """End all of them with UNAVAILABLE, and let none begin any more."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for stream in self._open:
            if not stream.expired():
                stream.reschedule(now)

    @asynccontextmanager
    async def room(self, context: Context) -> AsyncIterator[None]:
        """Serve a stream in this context. Where there is no room, or its time is up, the call is ended from here."""
        if self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is ending.")
        if len(self._open) >= self._most:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many of these streams are open.")
        try:
            async with asyncio.timeout(self._seconds) as stream:
                self._open.add(stream)
                try:
                    yield
                finally:
                    self._open.discard(stream)
        except TimeoutError:
            text = "The server is ending." if self._closing else "The stream was open for too long."
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)
