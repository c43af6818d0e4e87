"""The credentials of a caller, parsed. HTTP and gRPC follow the same rules, from Personium's document."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from server.refusals import Refusal, Refused

# The longest `authorization`, cookie and peer, in characters. A longer value is malformed.
_LIMIT = 4096
_COOKIE_LIMIT = 8192
_PEER_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a call: `authorization`, every `p-cookie` and `p-cookie-peer`, and `x-personium-unit-user`.

    Several values of `authorization` or `x-personium-unit-user` are joined with commas, as an HTTP server joins header
    lines.
    """

    authorization: str | None = None
    cookies: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    unit_user: str = ""

    def __repr__(self) -> str:
        return "Credentials(***)"

    def digest(self) -> bytes:
        """Return a digest that differs for different credentials."""
        text = self.authorization
        # The usual case needs no repr. No valid text begins with a bracket, so the two forms never collide.
        if text is None or self.cookies or self.peers or self.unit_user or text.startswith("("):
            text = repr((text, self.cookies, self.peers, self.unit_user))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class PresentedCookie:
    """A cookie that is not decrypted yet, and the `p_cookie_peer` that came with it."""

    cookie: str
    peer: str

    def __repr__(self) -> str:
        return "PresentedCookie(***)"


def presented(credentials: Credentials) -> str | PresentedCookie:
    """Return the token in `authorization` or, if there is no `authorization`, the cookie. Neither is verified yet.

    Raises:
        Refused: CREDENTIALS_MISSING, SCHEME_UNKNOWN, BASIC_MALFORMED, TOKEN_INVALID, COOKIE_REJECTED
    """
    value = credentials.authorization
    if value is None:
        return _cookie(credentials)
    if value[:6].lower() == "bearer":
        scheme, blank, token = value.partition(" ")
        return checked_token(token if len(scheme) == 6 and blank else "")
    if value[:5].lower() == "basic":
        raise Refused(Refusal.CREDENTIALS_MISSING if _is_basic(value) else Refusal.BASIC_MALFORMED)
    raise Refused(Refusal.SCHEME_UNKNOWN)


def checked_token(text: str) -> str:
    """Return the text if it has the form of a token. Raise `Refused` with TOKEN_INVALID."""
    fits = 0 < len(text) <= _LIMIT - len("Bearer ")
    if fits and text.isascii() and text.isprintable() and " " not in text:
        return text
    raise Refused(Refusal.TOKEN_INVALID, note="not of the form `Bearer TOKEN`, with one space and at most 4 KiB")


def _cookie(credentials: Credentials) -> PresentedCookie:
    if not any(credentials.peers) and len(credentials.peers) < 2:
        raise Refused(Refusal.CREDENTIALS_MISSING)
    if len(credentials.peers) > 1 or len(credentials.cookies) != 1:
        raise Refused(Refusal.COOKIE_REJECTED, note="needs exactly one cookie and one peer")
    cookie, peer = credentials.cookies[0], credentials.peers[0]
    if len(cookie) > _COOKIE_LIMIT or len(peer) > _PEER_LIMIT:
        raise Refused(Refusal.COOKIE_REJECTED, note="the cookie is longer than 8 KiB, or its peer than 1 KiB")
    return PresentedCookie(cookie, peer)


def _is_basic(value: str) -> bool:
    """Return whether the value is `Basic` and the base64 of a name, a colon and a password."""
    if len(value) > _LIMIT or value[5:6] != " ":
        return False
    try:
        return b":" in base64.b64decode(value[6:], validate=True)
    except (binascii.Error, ValueError):
        return False
