"""The metadata of the call that a request becomes: an allow-list, built here header by header.

The facade adds no authority and judges nothing. A value that metadata can't hold, or that is too large, would break the
call: it is replaced by a value that the server judges as malformed.
"""

from werkzeug.wrappers import Request

from cellexport import client, request_key
from cellexport.metadata import AUTHORIZATION, COOKIE, COOKIE_PEER, UNIT_USER
from cellexport.program import tracing
from gateway import request_observer

_CREDENTIAL_LIMIT = 4096
_COOKIE_LIMIT = 8192
_SHORT_LIMIT = 1024
# Neither a valid cookie nor a valid peer.
_MALFORMED = "?"


def metadata(request: Request, key: str) -> client.Metadata:
    """Return the metadata for a request.

    Args:
        key: the request key, validated or generated.
    """
    authorization = request.headers.get("Authorization")
    credentials = _cookie(request) if authorization is None else ((AUTHORIZATION, _credential(authorization)),)
    return ((request_key.METADATA, key), *credentials, *_unit_user(request), *_traceparent(request))


def _credential(value: str) -> str:
    if _fits(value, _CREDENTIAL_LIMIT):
        return value
    for scheme in ("Bearer", "Basic"):
        if value[: len(scheme)].lower() == scheme.lower():
            return scheme
    return "Other"


def _cookie(request: Request) -> client.Metadata:
    """Return the cookie and its peer. Duplicates are sent as two malformed values, for the server to refuse."""
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
    # Only its presence counts, not the user that it names.
    return ((UNIT_USER, value if _fits(value, _SHORT_LIMIT) else _MALFORMED),) if value else ()


def _traceparent(request: Request) -> client.Metadata:
    """Return the `traceparent` of the facade's own span, or else the caller's. Both are valid."""
    value: str | None = request.environ.get(request_observer.TRACEPARENT)
    return () if value is None else ((tracing.TRACEPARENT, value),)


def _fits(value: str, limit: int) -> bool:
    return len(value) <= limit and value.isascii() and value.isprintable()
