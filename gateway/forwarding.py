"""What of a request the server gets to know, besides the cell: an allow-list, made here and copied from nowhere.

The facade adds no authority and judges nothing. What would break the call itself, because metadata can't hold it or it
is too large, is cut down to what will be judged malformed in its place.
"""

from werkzeug.wrappers import Request

from cellexport import client, request_key
from cellexport.metadata import AUTHORIZATION, COOKIE, COOKIE_PEER, UNIT_USER
from cellexport.program import tracing
from gateway import request_observer

_CREDENTIAL_LIMIT = 4096
_COOKIE_LIMIT = 8192
_SHORT_LIMIT = 1024
# No cookie, and no peer of one.
_MALFORMED = "?"


def metadata(request: Request, key: str) -> client.Metadata:
    """The metadata of the call that a request becomes.

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
    """The cookie and its peer. That there are two of one is for the server to refuse, whatever they hold."""
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
    # Whoever it names: that it names somebody is what counts.
    return ((UNIT_USER, value if _fits(value, _SHORT_LIMIT) else _MALFORMED),) if value else ()


def _traceparent(request: Request) -> client.Metadata:
    """That of our own span, or else the caller's; valid, either."""
    value: str | None = request.environ.get(request_observer.TRACEPARENT)
    return () if value is None else ((tracing.TRACEPARENT, value),)


def _fits(value: str, limit: int) -> bool:
    return len(value) <= limit and value.isascii() and value.isprintable()
