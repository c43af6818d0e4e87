"""Tasks that run for as long as the server does."""

import asyncio
from typing import Any


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel it until it has ended, and raise what it raised, if that was another error.

    More than once: before Python 3.12 `asyncio.wait_for`, which redis-py uses, can lose a cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.result()
