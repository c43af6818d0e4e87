"""The pulse of the store: whether the store answers the requests of `exports.expiry`, which scans it all the time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A request that has waited for this long, in seconds, counts as unanswered. Longer than any store's own time limit: it
# detects a disk that hangs, for which no store has a limit.
_PATIENCE_SECONDS = 1.5


class StorePulse:
    """The record of whether the store answers. `beats` is false until the first answer."""

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
        """Return whether the latest request was answered, and no request has been waiting for more than 1.5 seconds."""
        overdue = self._asked_at is not None and self._monotonic() - self._asked_at > _PATIENCE_SECONDS
        return self._answered and not overdue
