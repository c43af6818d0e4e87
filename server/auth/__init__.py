"""The judge of tokens: decides for HTTP and gRPC alike which caller may make which call.

    credentials ──▶ `credentials`  extracts the presented token, from a cookie too (`cookie`)
                ──▶ a `TokenKind`  checks the token's issuer, cell and expiry (`master`, `jwt_access`, `local`)
                ──▶ `rights`       decides which privileges the token grants, by roles, access list and scope

`opening` builds the judge. Add a new kind of token as a `TokenKind` there. An accepted token is cached, so that the
next call with it needs no decryption. The token's expiry and the cell's access file are checked for every call.
This folder may import `exports.model`, `cells`, `refusals`, and `cellexport`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.auth import rights
from server.auth.cookie import Cookies
from server.auth.credentials import Credentials, PresentedCookie, checked_token, presented
from server.auth.rights import Accepted, Privilege
from server.cells import Cell
from server.exports.model import Caller
from server.refusals import Refusal, Refused

# The most tokens in the cache: more than the number of open watches, because a watch's token is judged again before
# every message.
_MOST_CACHED = 25_000


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose token was accepted.

    `holder` identifies a caller that may hold leases. `expires_at` is the last millisecond, since 1970, in which the
    token is valid. `for_unit` says whether the token is valid for every cell.
    """

    caller: Caller
    holder: str
    expires_at: int | None
    for_unit: bool

    def remaining_seconds(self, now: int) -> float | None:
        """Return how long the token stays valid after `now` (milliseconds since 1970), or None if it never expires."""
        return None if self.expires_at is None else max(0.0, (self.expires_at + 1 - now) / 1000)


class TokenKind(Protocol):
    """A kind of token, for example the JWTs of trusted issuers."""

    def version(self) -> int:
        """Return a number that changes when an accepted token may have become invalid, apart from its expiry. The judge
        then empties its cache.
        """

    def accept(self, token: str, credentials: Credentials, cell: Cell | None, now: int) -> Accepted | None:
        """Return the accepted token, or None if the token is of another kind. Don't read the cell's access file.

        Args:
            cell: the cell of the call; None for calls about the unit.
            now: milliseconds since 1970.

        Raises:
            Refused: with a reason of UNAUTHENTICATED, if the token is of this kind and invalid.
        """


class Judge:
    """Judges calls by the configured kinds of token. Without any kind, every call is refused.

    Args:
        cookies: decrypts cookies; if it is None, every cookie is refused.
        clock: milliseconds since 1970.
    """

    def __init__(self, kinds: Sequence[TokenKind], *, cookies: Cookies | None, clock: Callable[[], int]) -> None:
        self._kinds = tuple(kinds)
        self._cookies = cookies
        self._clock = clock
        self._cache: OrderedDict[tuple[bytes, str], Accepted] = OrderedDict()
        self._versions: tuple[int, ...] = ()

    def judge(self, credentials: Credentials, cell: Cell | None, needed: Privilege) -> Identity:
        """Return the caller, if it holds the privilege.

        Raises:
            Refused: CREDENTIALS_MISSING, SCHEME_UNKNOWN, BASIC_MALFORMED, COOKIE_REJECTED, TOKEN_INVALID,
                REFRESH_TOKEN, SIGNATURE_INVALID, TOKEN_EXPIRED, PRIVILEGE_LACKING, SCOPE_INSUFFICIENT
        """
        accepted = self._accept(credentials, cell)
        rights.require(needed, accepted, cell)
        return Identity(accepted.caller, accepted.holder, accepted.expires_at, accepted.for_unit)

    def _accept(self, credentials: Credentials, cell: Cell | None) -> Accepted:
        now = self._clock()
        self._forget_if_outdated()
        key = (credentials.digest(), "" if cell is None else cell.name)
        known = self._cache.get(key)
        if known is not None and (known.expires_at is None or now <= known.expires_at):
            self._cache.move_to_end(key)
            return known
        accepted = self._judge_token(credentials, cell, now)
        self._cache[key] = accepted
        if len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)
        return accepted

    def _forget_if_outdated(self) -> None:
        versions = tuple([kind.version() for kind in self._kinds])
        if versions != self._versions:
            self._cache.clear()
            self._versions = versions

    def _judge_token(self, credentials: Credentials, cell: Cell | None, now: int) -> Accepted:
        token = presented(credentials)
        if isinstance(token, PresentedCookie):
            if self._cookies is None:
                raise Refused(Refusal.COOKIE_REJECTED, note="cookies need CELLEXPORT_UNIT_SECRET, which is not set")
            token = checked_token(self._cookies.token(token, cell))
        for kind in self._kinds:
            accepted = kind.accept(token, credentials, cell, now)
            if accepted is not None:
                return accepted
        raise Refused(Refusal.TOKEN_INVALID, note="unknown kind of token, or a kind that is turned off")
