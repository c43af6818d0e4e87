"""JWT access tokens (RFC 9068) for callers in the mesh, judged as RFC 8725 advises.

The checks have the order of the contract: shape, algorithm, key, signature, expiry, other claims. The library PyJWT
verifies the signature. PyJWT accepts numbers given as text and duplicate claims, so this module refuses such tokens.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jwt import PyJWK, PyJWS
from jwt.exceptions import InvalidSignatureError

from cellexport.program.unit_urls import UnitUrls
from server.auth.cipher import decode_base64url
from server.auth.credentials import Credentials
from server.auth.issuers import Issuer
from server.auth.rights import ALL, Accepted
from server.cells import Cell
from server.exports.model import Caller
from server.refusals import Refusal, Refused

# The accepted values of the header `typ`.
_TYPES = frozenset({"at+jwt", "application/at+jwt"})
# How far the clocks of the issuer and the server may differ.
_LEEWAY_SECONDS = 30
# The shortest time between two checks whether the key files have changed.
_CHECK_SECONDS = 1.0
# The latest time that a claim may hold, in seconds since 1970: the end of the year 9999.
_LATEST = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Parts:
    """The header and claims of a token, not verified."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]


class JwtAccessTokens:
    """The `TokenKind` of JWTs from trusted issuers."""

    def __init__(self, issuers: Mapping[str, Issuer], urls: UnitUrls) -> None:
        self._issuers = issuers
        self._urls = urls
        self._jws = PyJWS()
        self._checked_at = time.monotonic()
        self._version = 0

    def version(self) -> int:
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._version += sum([issuer.refresh() for issuer in self._issuers.values()])
        return self._version

    def accept(self, token: str, credentials: Credentials, cell: Cell | None, now: int) -> Accepted | None:
        if token.count(".") != 2:
            return None
        parts = read(token)
        if parts is None:
            raise _invalid(
                "not a JWT: it needs three base64url parts, the first two JSON objects without duplicate keys"
            )
        key, algorithm = self._key(parts)
        self._verify(token, key, algorithm)
        expires_at = _expiry(parts.claims)
        if now > expires_at:
            raise Refused(Refusal.TOKEN_EXPIRED)
        return self._accepted(parts.claims, cell, now, expires_at)

    def _key(self, parts: Parts) -> tuple[PyJWK, str]:
        header = parts.header
        if not isinstance(header.get("typ"), str) or header["typ"].lower() not in _TYPES:
            raise _invalid("typ is not at+jwt")
        if "crit" in header or "b64" in header:
            raise _invalid("crit and b64 are not supported")
        name, algorithm, kid = parts.claims.get("iss"), header.get("alg"), header.get("kid")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise _invalid("iss is not trusted")
        if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
            raise _invalid("alg is not one of the issuer's")
        if "kid" in header and not isinstance(kid, str):
            raise _invalid("kid is not a string")
        key = issuer.key(algorithm, kid)
        if key is None:
            raise _invalid("the issuer has no key of that kid, or several and kid is missing")
        return key, algorithm

    def _verify(self, token: str, key: PyJWK, algorithm: str) -> None:
        try:
            self._jws.decode(token, key, [algorithm])
        except InvalidSignatureError as error:
            raise Refused(Refusal.SIGNATURE_INVALID) from error
        except Exception as error:
            # Every other exception of the library means an invalid token.
            raise _invalid(f"the JWT library rejects it ({type(error).__name__})") from error

    def _accepted(self, claims: Mapping[str, Any], cell: Cell | None, now: int, expires_at: int) -> Accepted:
        audiences = claims.get("aud")
        audiences = [audiences] if isinstance(audiences, str) else audiences
        meant = {self._urls.unit} if cell is None else {self._urls.unit, self._urls.cell(cell.name)}
        if not isinstance(audiences, list) or not meant.intersection(filter(_is_text, audiences)):
            raise _invalid("aud must be the unit's URL" if cell is None else "aud names neither the cell nor the unit")
        if any(not _is_number(claims[name]) for name in ("nbf", "iat") if name in claims):
            raise _invalid("nbf or iat is not a number")
        if now < (claims.get("nbf", 0) - _LEEWAY_SECONDS) * 1000:
            raise _invalid("nbf is in the future")
        if any(not _is_text(claims[name]) for name in ("sub", "client_id", "scope") if name in claims):
            raise _invalid("sub, client_id or scope is not a string")
        subject, application = claims.get("sub"), claims.get("client_id")
        return Accepted(
            caller=Caller(schema=application, subject=subject),
            holder=json.dumps([claims["iss"], subject, application]),
            expires_at=expires_at,
            privileges=ALL,
            scope=frozenset(claims.get("scope", "").split(" ")),
            for_unit=self._urls.unit in audiences,
        )


def read(token: str) -> Parts | None:
    """Return the header and claims of a token, not verified, or None if it isn't a strictly valid JWT."""
    header, claims, signature = (decode_base64url(part) for part in token.split("."))
    parts = Parts(_object(header or b""), _object(claims or b""))
    return parts if parts.header and parts.claims and signature else None


def _expiry(claims: Mapping[str, Any]) -> int:
    """Return the last millisecond, since 1970, in which the token is valid."""
    seconds = claims.get("exp")
    if type(seconds) is not int or not 0 <= seconds <= _LATEST:
        raise _invalid("exp is not a whole number of seconds")
    return (seconds + _LEEWAY_SECONDS) * 1000 - 1


def _object(data: bytes) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_LATEST <= value <= _LATEST  # type: ignore[operator]  # narrowed by `type`


def _invalid(why: str) -> Refused:
    return Refused(Refusal.TOKEN_INVALID, note=why)
