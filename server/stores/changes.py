"""Who waits for changes of what, within one server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Sets the events of those who wait. Not for threads other than the event loop's."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set with each change of the topic, as long as the context is open."""
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            yield event
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def tell(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    def tell_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()
