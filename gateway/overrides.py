"""Middleware for two headers: `X-HTTP-Method-Override` replaces the method, and `X-Override` replaces other headers.

Clients that can't set a header such as `Authorization` send it inside `X-Override`, as `Authorization: Bearer TOKEN`.

Caveat: a proxy in front that filters or checks such a header doesn't see it inside `X-Override`: then set
`CELLEXPORT_X_OVERRIDE=off`. `X-Override` can replace only the headers in `_OVERRIDABLE`: never `Host`, framing,
forwarding headers or the request key, and never the method.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# The key of the WSGI environ under which `HeaderOverride` leaves the reason why `X-Override` must be refused.
REFUSED = "cellexport.override_refused"

# The limits of `X-Override`: its length in characters, and its number of `name: value` pairs.
_LONGEST = 8 * 1024
_MOST_PAIRS = 16
# The headers that `X-Override` may replace, and their keys in the WSGI environ.
_OVERRIDABLE = {
    "authorization": "HTTP_AUTHORIZATION",
    "accept": "HTTP_ACCEPT",
    "cookie": "HTTP_COOKIE",
    "x-personium-unit-user": "HTTP_X_PERSONIUM_UNIT_USER",
}
# A WSGI server joins several `X-Override` lines with commas, but a comma may also be part of a value. So a pair begins
# only after a comma that a header's name and a colon follow.
_BETWEEN_PAIRS = re.compile(r",(?=[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*:)")


class MethodOverride:
    """Middleware that replaces the method POST by the method in `X-HTTP-Method-Override`.

    Args:
        methods: the known methods, case-sensitive. Any other method becomes UNKNOWN, which is refused.
    """

    def __init__(self, app: WSGIApplication, methods: frozenset[str]) -> None:
        self._app = app
        self._methods = methods

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        named = environ.get("HTTP_X_HTTP_METHOD_OVERRIDE")
        if named and environ["REQUEST_METHOD"] == "POST":
            environ["REQUEST_METHOD"] = named if named in self._methods else "UNKNOWN"
            if named == "HEAD":
                return self._app(environ, _without_length(start_response))
        return self._app(environ, start_response)


class HeaderOverride:
    """Middleware that applies `X-Override`.

    If `X-Override` is too large, it leaves the reason in the WSGI environ. The application then refuses the request,
    after the checks that come first in the contract's order.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        text = environ.get("HTTP_X_OVERRIDE")
        if text:
            _apply(text, environ)
        return self._app(environ, start_response)


def _without_length(start_response: StartResponse) -> StartResponse:
    """Remove Content-Length from the response to a POST that became a HEAD. The response has no body, but its
    Content-Length is that of a GET's body, and a client that sent a POST would wait for those bytes.
    """

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        return start_response(status, kept, exc_info)

    return start


def split(text: str) -> list[str]:
    """Return the `name: value` pairs of an `X-Override` that arrived in one header line or in several."""
    return _BETWEEN_PAIRS.split(text)


def pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each pair. Ignore a text that has no colon or no name."""
    for text in texts:
        name, colon, value = text.partition(":")
        if colon and name.strip():
            yield name.strip(), value.strip()


def _apply(text: str, environ: WSGIEnvironment) -> None:
    texts = split(text) if len(text) <= _LONGEST else []
    if not texts:
        environ[REFUSED] = f"longer than {_LONGEST} bytes"
    elif len(texts) > _MOST_PAIRS:
        environ[REFUSED] = f"more than {_MOST_PAIRS} pairs"
    else:
        for name, value in pairs(texts):
            variable = _OVERRIDABLE.get(name.lower())
            if variable is not None:
                environ[variable] = value
