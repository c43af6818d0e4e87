"""The number of calls that the server is serving."""

import asyncio

from server.rpc import call_context
from server.rpc.call_context import Context


class CallsInFlight:
    """The count of calls being served: from the moment a method receives a call until it is answered or cancelled."""

    def __init__(self) -> None:
        self._calls = 0
        self._none = asyncio.Event()
        self._none.set()

    def add(self, context: Context) -> None:
        """Count a call until it is over."""
        self._calls += 1
        self._none.clear()
        call_context.when_over(context, self._remove)

    async def wait_for_none(self, *, seconds: float) -> None:
        """Wait until no call is being served, and still none `seconds` later."""
        while True:
            await self._none.wait()
            await asyncio.sleep(seconds)
            if not self._calls:
                return

    def _remove(self, _: Context) -> None:
        self._calls -= 1
        if not self._calls:
            self._none.set()
