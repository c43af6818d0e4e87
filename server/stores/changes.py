"""Notifications of changed records and of queued exports, to subscribers within one server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# The key for the subscribers to the queue, in place of a cell's name. No cell has an empty name.
_QUEUE = ""


class Changes:
    """The subscribers to changes of cells' records and of the queue. To be used only on the event loop's thread."""

    def __init__(self) -> None:
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, cell: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set after each change of the cell's record, while the context is open.

        The subscriber clears the event.
        """
        event = asyncio.Event()
        self._events[cell].add(event)
        try:
            yield event
        finally:
            self._events[cell].discard(event)
            if not self._events[cell]:
                del self._events[cell]

    def of_queue(self) -> AbstractContextManager[asyncio.Event]:
        """Return a context like that of `of`. Its event is set after each time that an export was queued."""
        return self.of(_QUEUE)

    def notify(self, cell: str) -> None:
        """Notify the subscribers to a cell: its record has changed."""
        for event in self._events.get(cell, ()):
            event.set()

    def notify_queue(self) -> None:
        """Notify the subscribers to the queue: an export was queued."""
        self.notify(_QUEUE)

    def notify_all(self) -> None:
        """Notify all subscribers, because any record may have changed."""
        for events in self._events.values():
            for event in events:
                event.set()
