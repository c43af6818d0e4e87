"""What a caller presented, taken apart. The rules are those of the REST door's document, for both doors."""

import base64
import binascii
from dataclasses import dataclass

from server.errors import Refusal, Refused

# A longer value is malformed, whatever it holds.
_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What came in `authorization`, in the cookie and its peer (all values), and in `x-personium-unit-user`.

    Several values of the first and the last are one, joined by commas, as an HTTP server joins header lines.
    """

    authorization: str | None = None
    cookies: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    unit_user: str = ""

    def __repr__(self) -> str:
        return "Credentials(***)"


def bearer_token(credentials: Credentials) -> str:
    """The token of a Bearer credential, not looked into yet.

    Raises:
        Refused: CREDENTIALS_MISSING, SCHEME_UNKNOWN, BASIC_MALFORMED, TOKEN_INVALID, COOKIE_REJECTED
    """
    value = credentials.authorization
    if value is None:
        # Without the unit's secret no cookie is any good.
        presented = any(credentials.peers) or len(credentials.peers) > 1
        raise Refused(Refusal.COOKIE_REJECTED if presented else Refusal.CREDENTIALS_MISSING)
    if value[:6].lower() == "bearer":
        scheme, blank, token = value.partition(" ")
        if len(value) <= _LIMIT and len(scheme) == 6 and blank and _is_token(token):
            return token
        raise Refused(Refusal.TOKEN_INVALID)
    if value[:5].lower() == "basic":
        raise Refused(Refusal.CREDENTIALS_MISSING if _is_basic(value) else Refusal.BASIC_MALFORMED)
    raise Refused(Refusal.SCHEME_UNKNOWN)


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _is_basic(value: str) -> bool:
    """Whether it is `Basic` and the base64 of a name, a colon and a password."""
    if len(value) > _LIMIT or value[5:6] != " ":
        return False
    try:
        return b":" in base64.b64decode(value[6:], validate=True)
    except (binascii.Error, ValueError):
        return False
