"""Turns at the store, of many who want to read it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.refusals import Refusal, Refused


class Turns:
    """
    Args:
        at_a_time: how many have their turn at once.
        patience_seconds: how long one may wait for it: with a store that hangs, a thousand would wait for minutes.
    """

    def __init__(self, *, at_a_time: int, patience_seconds: float) -> None:
        self._free = asyncio.Semaphore(at_a_time)
        self._patience_seconds = patience_seconds

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A turn, as long as the context is open.

        Raises:
            Refused: STORE_UNAVAILABLE, if it doesn't come in time.
        """
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise Refused(Refusal.STORE_UNAVAILABLE, note="too many wait for a store that is slow") from error
        try:
            yield
        finally:
            self._free.release()
