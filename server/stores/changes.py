"""Notifications of changes within one server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# The subscribers of the queue. No cell has that name.
_QUEUE = ""


class Changes:
    """Subscribers to changes of cells and of the queue. Only for the thread of the event loop."""

    def __init__(self) -> None:
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, cell: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set after each change of the cell while the context is open."""
        event = asyncio.Event()
        self._events[cell].add(event)
        try:
            yield event
        finally:
            self._events[cell].discard(event)
            if not self._events[cell]:
                del self._events[cell]

    def of_queue(self) -> AbstractContextManager[asyncio.Event]:
        """Yield an event that is set after an export was queued while the context is open."""
        return self.of(_QUEUE)

    def notify(self, cell: str) -> None:
        """Notify the subscribers of a cell."""
        for event in self._events.get(cell, ()):
            event.set()

    def notify_queue(self) -> None:
        """Notify the subscribers of the queue."""
        self.notify(_QUEUE)

    def notify_all(self) -> None:
        """Notify all subscribers."""
        for events in self._events.values():
            for event in events:
                event.set()
