"""The calls that are being served."""

import asyncio

from server.rpc import call_context
from server.rpc.call_context import Context


class CallsInFlight:
    """Counts calls from the time that a method has them until the last of their answer is sent, or nobody wants it."""

    def __init__(self) -> None:
        self._calls = 0
        self._none = asyncio.Event()
        self._none.set()

    def add(self, context: Context) -> None:
        self._calls += 1
        self._none.clear()
        call_context.when_over(context, self._remove)

    async def wait_for_none(self, *, seconds: float) -> None:
        """Wait until there has been none for so long."""
        while True:
            await self._none.wait()
            await asyncio.sleep(seconds)
            if not self._calls:
                return

    def _remove(self, _: Context) -> None:
        self._calls -= 1
        if not self._calls:
            self._none.set()
