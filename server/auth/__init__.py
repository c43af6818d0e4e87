"""Who may do what: decided here, for both doors, and nowhere else.

`judge` goes from what a caller presented to a yes or a refusal: `credentials` takes the presented text apart, the kinds
of token that the unit knows are asked in turn whether a token is theirs, and the privilege that the method needs is
compared with what the token gives. A new kind of token is a new `TokenKind` in `wiring`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from server.auth.credentials import Credentials, bearer_token
from server.errors import Refusal, Refused
from server.model import Caller, Cell


class Privilege(Enum):
    """What a method may need."""

    # The privilege of the document: everything on one cell.
    ROOT = "root"
    # What exporters need: to claim, report and finish exports of any cell.
    EXPORT_REPORT = "export-report"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose token was accepted, and what it may do."""

    caller: Caller
    privileges: frozenset[Privilege]


class TokenKind(Protocol):
    """A kind of token."""

    def identify(self, token: str, credentials: Credentials, cell: Cell | None) -> Identity | None:
        """The caller whom the token stands for, or None if the token is of another kind.

        Args:
            cell: the cell that the call is about; None for calls that are about the unit.

        Raises:
            Refused: with a reason of UNAUTHENTICATED, if it is of this kind and no good.
        """


class Judge:
    """Judges calls by the kinds of token there are; with none, every call is refused."""

    def __init__(self, kinds: Sequence[TokenKind]) -> None:
        self._kinds = tuple(kinds)

    def judge(self, credentials: Credentials, cell: Cell | None, needed: Privilege) -> Identity:
        """Who the caller is, if it may do what needs that privilege.

        Raises:
            Refused: CREDENTIALS_MISSING, SCHEME_UNKNOWN, BASIC_MALFORMED, TOKEN_INVALID, PRIVILEGE_LACKING
        """
        token = bearer_token(credentials)
        identity = self._identify(token, credentials, cell)
        if needed not in identity.privileges:
            raise Refused(Refusal.PRIVILEGE_LACKING)
        return identity

    def _identify(self, token: str, credentials: Credentials, cell: Cell | None) -> Identity:
        for kind in self._kinds:
            identity = kind.identify(token, credentials, cell)
            if identity is not None:
                return identity
        raise Refused(Refusal.TOKEN_INVALID)
