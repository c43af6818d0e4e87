"""Middleware for headers that replace others: `X-HTTP-Method-Override` and `X-Override`.

Clients that can't set headers such as `Authorization` use `X-Override`.

Caveat: it can carry the headers named below. A proxy in front that filters or checks such a header, for
example `Authorization`, doesn't see it inside `X-Override`: then set `CELLEXPORT_X_OVERRIDE=off`. An override never
changes `Host`, framing, forwarding headers, the request key or the method.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# The key of the environ with the reason why the overrides must be refused.
REFUSED = "cellexport.override_refused"

_LONGEST = 8 * 1024
_MOST_PAIRS = 16
_OVERRIDABLE = {
    "authorization": "HTTP_AUTHORIZATION",
    "accept": "HTTP_ACCEPT",
    "cookie": "HTTP_COOKIE",
    "x-personium-unit-user": "HTTP_X_PERSONIUM_UNIT_USER",
}
# A WSGI server joins header lines with commas. Only a comma before a header's name and a colon can separate lines.
_BETWEEN_PAIRS = re.compile(r",(?=[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*:)")


class MethodOverride:
    """Replaces the method of a real POST by the one that `X-HTTP-Method-Override` names.

    Args:
        methods: the known methods, case-sensitive. Any other name becomes UNKNOWN.
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
    """Applies `X-Override`. If it is too large, marks it for the application to refuse in the contract's order."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        text = environ.get("HTTP_X_OVERRIDE")
        if text:
            _apply(text, environ)
        return self._app(environ, start_response)


def _without_length(start_response: StartResponse) -> StartResponse:
    """Remove Content-Length: the client sent a POST, and would wait for the bytes of a GET's body."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        return start_response(status, kept, exc_info)

    return start


def split(text: str) -> list[str]:
    """Return the pairs of an `X-Override`, whether it arrived in one line or in several."""
    return _BETWEEN_PAIRS.split(text)


def pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values. A text without a colon, or without a name, is ignored."""
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
