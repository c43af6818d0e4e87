"""How many streams may be open at once: in all, and of one caller."""

from collections import Counter

from server.auth import Identity
from server.refusals import Refusal, Refused


class StreamLimit:
    """Counts the open streams of one kind, of this server.

    Args:
        total: how many there may be.
        per_caller: how many of them one caller may have; one who may see every cell may have them all.
    """

    def __init__(self, *, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        # By caller; None is for all of them.
        self._open: Counter[str | None] = Counter()

    def room(self) -> "_Room":
        """One of all. Entering it raises `Refused` with TOO_MANY_WATCHES; it is asked before the caller is known."""
        return _Room(self, None, self._total)

    def room_for(self, identity: Identity) -> "_Room":
        """One of that caller's. Entering it raises `Refused` with TOO_MANY_WATCHES."""
        caller = identity.holder or identity.caller.subject or ""
        return _Room(self, caller, self._total if identity.for_unit else self._per_caller)

    @property
    def open(self) -> int:
        return self._open[None]

    def enter(self, whose: str | None, most: int) -> None:
        if self._open[whose] >= most:
            raise Refused(Refusal.TOO_MANY_WATCHES, note="" if whose is None else "of this caller")
        self._open[whose] += 1

    def leave(self, whose: str | None) -> None:
        self._open[whose] -= 1
        if not self._open[whose]:
            del self._open[whose]


class _Room:
    """A place as long as the context is open. There are thousands: a generator for each would cost a kilobyte."""

    __slots__ = ("_limit", "_most", "_whose")

    def __init__(self, limit: StreamLimit, whose: str | None, most: int) -> None:
        self._limit = limit
        self._whose = whose
        self._most = most

    def __enter__(self) -> None:
        self._limit.enter(self._whose, self._most)

    def __exit__(self, *_: object) -> None:
        self._limit.leave(self._whose)
