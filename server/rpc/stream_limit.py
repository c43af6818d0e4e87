"""The limit of open streams: in total, and for each caller."""

from collections import Counter

from server.auth import Identity
from server.refusals import Refusal, Refused


class StreamLimit:
    """Counts the open streams of one method on this server.

    Args:
        total: how many may be open.
        per_caller: how many one caller may have open. A unit-level caller may have them all.
    """

    def __init__(self, *, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        # By caller. The key None counts all streams.
        self._open: Counter[str | None] = Counter()

    def room(self) -> "_Room":
        """Return a place among all streams, to be taken before the caller is known.

        Entering it raises `Refused` with TOO_MANY_WATCHES.
        """
        return _Room(self, None, self._total)

    def room_for(self, identity: Identity) -> "_Room":
        """Return a place among the caller's streams. Entering it raises `Refused` with TOO_MANY_WATCHES."""
        caller = identity.holder or identity.caller.subject or ""
        return _Room(self, caller, self._total if identity.for_unit else self._per_caller)

    @property
    def open(self) -> int:
        """Return how many streams are open."""
        return self._open[None]

    def enter(self, caller: str | None, most: int) -> None:
        if self._open[caller] >= most:
            raise Refused(Refusal.TOO_MANY_WATCHES, note="" if caller is None else "too many watches of this caller")
        self._open[caller] += 1

    def leave(self, caller: str | None) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]


class _Room:
    """A place that is taken while the context is open.

    A class, because there are thousands: a generator for each would cost a kilobyte.
    """

    __slots__ = ("_caller", "_limit", "_most")

    def __init__(self, limit: StreamLimit, caller: str | None, most: int) -> None:
        self._limit = limit
        self._caller = caller
        self._most = most

    def __enter__(self) -> None:
        self._limit.enter(self._caller, self._most)

    def __exit__(self, *_: object) -> None:
        self._limit.leave(self._caller)
