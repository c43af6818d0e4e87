"""The cancellation of the server's tasks."""

import asyncio

import pytest

from server import tasks


async def deaf(losses: int) -> None:
    """Ignore this many cancellations, and end with the next."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if losses == 0:
                raise
            losses -= 1


async def failing() -> None:
    raise LookupError


@pytest.mark.parametrize("losses", [0, 1, 3])
@pytest.mark.timeout(10)
def test_a_task_that_loses_cancellations_is_ended(losses: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(deaf(losses))
        await asyncio.sleep(0)
        await tasks.cancel(task)
        assert task.cancelled()

    asyncio.run(main())


def test_an_error_of_a_task_is_raised() -> None:
    async def main() -> None:
        task = asyncio.create_task(failing())
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await tasks.cancel(task)

    asyncio.run(main())
