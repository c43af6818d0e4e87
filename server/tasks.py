"""The cancellation of background tasks, which run as long as the server."""

import asyncio
from typing import Any


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended. Raise the task's own exception, if it has one.

    The task is cancelled again and again: before Python 3.12 `asyncio.wait_for`, which redis-py uses, can lose a
    cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.result()
