"""Explanations of tokens for people: the content of a token, and the judge's verdict. They contain no secret."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from server.auth import Judge, jwt_access
from server.auth.credentials import Credentials
from server.auth.local import Content, LocalTokens
from server.auth.rights import Privilege
from server.cells import Cell
from server.refusals import Refused

_LOCAL = {
    "AR~": "of an account of the cell (resident)",
    "AA~": "of an account of the cell (resident), layout of 2017",
    "AV~": "of a visitor with roles of the cell",
    "AL~": "of a visitor with roles of the cell, layout of 2017",
    "AU~": "of a unit user",
    "AP~": "valid only for changing a password",
    "RR~": "refresh token of a resident",
    "RV~": "refresh token of a visitor",
    "RA~": "refresh token of a resident, layout of 2017",
    "RT~": "refresh token of a visitor, layout of 2017",
    "GC~": "grant code, which is exchanged for a token",
}
_CLAIMS = ("iss", "aud", "sub", "client_id", "scope")
_TIMES = ("iat", "nbf", "exp")

Line = tuple[str, str]


def describe(token: str, cell: Cell, local: LocalTokens | None) -> Iterator[Line]:
    """Yield the content of a token, as names and values. The content of a JWT is not verified.

    Args:
        local: decrypts local tokens; None if the unit's secret is not set.
    """
    if token.count(".") == 2:
        yield from _describe_jwt(token)
    elif is_local(token):
        yield "kind", f"Personium local token, {_LOCAL[token[:3]]}"
        yield from _describe_local(token, cell, local)
    else:
        yield "kind", "an opaque text: the unit master token, or an unknown token"


def is_local(token: str) -> bool:
    """Return whether the token has a prefix of a Personium unit."""
    return token[:3] in _LOCAL


def verdict(judge: Judge, credentials: Credentials, cell: Cell | None, needed: Privilege) -> str | None:
    """Return why a call would be refused, or None if it would be accepted."""
    try:
        judge.judge(credentials, cell, needed)
    except Refused as refused:
        why = f" ({refused.note})" if refused.note else ""
        return f"{refused.refusal.value.personium_code} {refused.text}{why}"
    return None


def _describe_jwt(token: str) -> Iterator[Line]:
    parts = jwt_access.read(token)
    if parts is None:
        yield "kind", "three parts between dots like a JWT, but not a valid JWT"
        return
    yield "kind", "JWT (content not verified)"
    for name in ("typ", "alg", "kid"):
        yield name, _text(parts.header.get(name))
    for name in _CLAIMS:
        yield name, _text(parts.claims.get(name))
    for name in _TIMES:
        value = parts.claims.get(name)
        yield name, _time(value * 1000) if type(value) is int else _text(value)


def _describe_local(token: str, cell: Cell, local: LocalTokens | None) -> Iterator[Line]:
    content: Content | None = None if local is None else local.content(token, cell)
    if local is None:
        yield "content", "unknown: without CELLEXPORT_UNIT_SECRET it can't be decrypted"
    elif content is not None:
        yield "issuer", _text(content.issuer)
        yield "subject", _text(content.subject)
        yield "schema", _text(content.schema or None)
        yield "scope", "none in this layout" if content.scope is None else _text(" ".join(sorted(content.scope)))
        yield "roles", _text(" ".join(content.roles) or None)
        yield "issued", _time(content.issued_at)
        yield "expires", _time(content.expires_at)


def _text(value: object) -> str:
    """Return the value as JSON, which contains no control characters for the terminal."""
    return "-" if value is None else json.dumps(value)


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "not a valid time"
