"""How many streams may be open at once: in all, and of one caller."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.auth import Identity
from server.errors import Refusal, Refused


class StreamLimit:
    """Counts the open streams of one kind, of this server.

    Args:
        total: how many there may be.
        per_caller: how many of them one caller may have; one who may see every cell may have them all.
    """

    def __init__(self, *, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._callers: Counter[str] = Counter()
        self.open = 0

    @contextmanager
    def room(self) -> Iterator[None]:
        """One of all. Raises `Refused` with TOO_MANY_WATCHES; it is asked before the caller is known."""
        if self.open >= self._total:
            raise Refused(Refusal.TOO_MANY_WATCHES)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextmanager
    def room_for(self, identity: Identity) -> Iterator[None]:
        """One of that caller's. Raises `Refused` with TOO_MANY_WATCHES."""
        caller = identity.holder or identity.caller.subject or ""
        if not identity.for_unit and self._callers[caller] >= self._per_caller:
            raise Refused(Refusal.TOO_MANY_WATCHES, note="of this caller")
        self._callers[caller] += 1
        try:
            yield
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]
