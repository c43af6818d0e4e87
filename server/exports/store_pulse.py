"""Whether the store answers, as far as those know who ask it anyway."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The stores bound their own operations below this; a disk that hangs is bound by nobody else.
_PATIENCE_SECONDS = 1.5


class StorePulse:
    """Until the store has first answered, it doesn't."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._answered = False
        self._asked_at: float | None = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask the store in this context, to have noted whether it answers."""
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
        """Whether the latest question was answered, and none waits for its answer for too long."""
        overdue = self._asked_at is not None and self._monotonic() - self._asked_at > _PATIENCE_SECONDS
        return self._answered and not overdue
