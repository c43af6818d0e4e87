"""The pulse of the store: whether it answers the requests that the server makes anyway."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Longer than any store's own time limit. It catches a disk that hangs, which has no limit.
_PATIENCE_SECONDS = 1.5


class StorePulse:
    """Tracks whether the store answers. Unhealthy until the first answer."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._answered = False
        self._asked_at: float | None = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Record whether the request to the store inside this context is answered."""
        self._asked_at = self._monotonic()
        try:
            yield
        except Exception:
            self._answered = False
            raise
        else:
            self._answered = True
        finally:
            self._asked_at = None

    @property
    def beats(self) -> bool:
        """Return whether the latest request was answered, and none has been waiting for more than 1.5 seconds."""
        overdue = self._asked_at is not None and self._monotonic() - self._asked_at > _PATIENCE_SECONDS
        return self._answered and not overdue
