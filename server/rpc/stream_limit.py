"""The limit of open streams: in total, and for each caller."""

from collections import Counter

from server.auth import Identity
from server.refusals import Refusal, Refused


class StreamLimit:
    """The limit and the count of the open streams of one method on this server.

    Args:
        total: how many streams may be open.
        per_caller: how many of them one caller may have open. A unit-level caller may have all of `total`.
    """

    def __init__(self, *, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        # The number of open streams by caller. The key None counts the streams of all callers.
        self._open: Counter[str | None] = Counter()

    def room(self) -> "_Room":
        """Return a context that takes one of the places of all callers, before the caller is known.

        Entering the context raises `Refused` with TOO_MANY_WATCHES.
        """
        return _Room(self, None, self._total)

    def room_for(self, identity: Identity) -> "_Room":
        """Return a context that takes a place of the caller. Entering it raises `Refused` with TOO_MANY_WATCHES."""
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
    """A place for a stream, which is taken while the context is open.

    It is a class, because thousands are open: a generator for each would cost a kilobyte of memory.
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
