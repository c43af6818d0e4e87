"""Makes the metadata of a gRPC call from the headers of an HTTP request. Only the headers named here are forwarded.

The gateway gives a caller no rights and judges no credentials. A header that gRPC metadata can't hold, or that is too
large, would break the call: it is replaced by a value that the server judges as malformed.
"""

from werkzeug.wrappers import Request

from cellexport import client, request_key
from cellexport.metadata import AUTHORIZATION, COOKIE, COOKIE_PEER, UNIT_USER
from cellexport.program import tracing
from gateway import request_observer

# The longest values that are forwarded, in characters: of `Authorization`, of a cookie, of any other.
_CREDENTIAL_LIMIT = 4096
_COOKIE_LIMIT = 8192
_SHORT_LIMIT = 1024
# Sent in place of a value that can't be forwarded. It is neither a valid cookie nor a valid `p_cookie_peer`.
_MALFORMED = "?"


def metadata(request: Request, key: str) -> client.Metadata:
    """Return the metadata of the call for a request.

    Args:
        key: the request key: the caller's own, which is valid, or a generated one.
    """
    authorization = request.headers.get("Authorization")
    credentials = _cookie(request) if authorization is None else ((AUTHORIZATION, _credential(authorization)),)
    return ((request_key.METADATA, key), *credentials, *_unit_user(request), *_traceparent(request))


def _credential(value: str) -> str:
    """Return the value of `Authorization`, or only its scheme if the value can't be forwarded."""
    if _fits(value, _CREDENTIAL_LIMIT):
        return value
    for scheme in ("Bearer", "Basic"):
        if value[: len(scheme)].lower() == scheme.lower():
            return scheme
    return "Other"


def _cookie(request: Request) -> client.Metadata:
    """Return `p_cookie` and `p_cookie_peer`. One that was given twice is sent as two malformed values, which the server
    refuses.
    """
    peers = request.args.getlist("p_cookie_peer")
    if not any(peers) and len(peers) < 2:
        return ()
    cookies = request.cookies.getlist("p_cookie")
    return (*_values(COOKIE, cookies, _COOKIE_LIMIT), *_values(COOKIE_PEER, peers, _SHORT_LIMIT))


def _values(name: str, values: list[str], limit: int) -> client.Metadata:
    if len(values) > 1:
        return ((name, _MALFORMED),) * 2
    return tuple((name, value if _fits(value, limit) else _MALFORMED) for value in values)


def _unit_user(request: Request) -> client.Metadata:
    value = request.headers.get("X-Personium-Unit-User")
    # The header makes a call give up the unit's own rights, whatever user it names. So `?` has the same effect.
    return ((UNIT_USER, value if _fits(value, _SHORT_LIMIT) else _MALFORMED),) if value else ()


def _traceparent(request: Request) -> client.Metadata:
    """Return the `traceparent` of the gateway's own span or, without traces, the caller's if that is valid."""
    value: str | None = request.environ.get(request_observer.TRACEPARENT)
    return () if value is None else ((tracing.TRACEPARENT, value),)


def _fits(value: str, limit: int) -> bool:
    return len(value) <= limit and value.isascii() and value.isprintable()
